"""Kinds of garments: ``retail/garment`` with the recipe's own settings, on the official test part.

Five seeds beside logistic regression on the frozen base's features, which is fitted in the same
run, and beside scores that others published for the same test part.
Needs the plugin `retail` and the files of Fashion-MNIST: install Debian's package
dataset-fashion-mnist, or set TRUNKLINE_FASHION_MNIST to their folder. Asserts nothing.
"""

from __future__ import annotations

import quality

PUBLISHED = {
    "people (Xiao et al. 2017)": "0.835",
    "HOG + SVM (their list)": "0.926",
    "ResNet18 (their list)": "0.949",
}

if __name__ == "__main__":
    quality.main(__doc__, "retail/garment", PUBLISHED)
