{{- define "trunkline.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end }}
{{- end }}

{{- define "trunkline.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "trunkline.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "trunkline.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "trunkline.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "trunkline.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Variables that every container of the chart has. */}}
{{- define "trunkline.env" -}}
- name: TRUNKLINE_REGISTRY
  valueFrom:
    secretKeyRef:
      name: {{ required "registry.existingSecret must name the secret with the database's URL" .Values.registry.existingSecret }}
      key: {{ .Values.registry.key }}
- name: TRUNKLINE_STORE
  value: {{ required "store.url must be the URL of the store, such as s3://models/trunkline" .Values.store.url | quote }}
{{- with .Values.store.endpoint }}
- name: AWS_ENDPOINT_URL_S3
  value: {{ . | quote }}
{{- end }}
- name: TRUNKLINE_BASE
  value: {{ .Values.base.name | quote }}
{{- end }}

{{- define "trunkline.envFrom" -}}
{{- with .Values.store.existingSecret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{- /* A value as click reads it from a variable; a plain number would become 1e+06. */}}
{{- define "trunkline.text" -}}
{{- if kindIs "slice" . }}{{ join " " . }}{{ else if kindIs "string" . }}{{ . }}{{ else }}{{ toJson . }}{{ end }}
{{- end }}
