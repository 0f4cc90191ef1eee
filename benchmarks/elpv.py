"""Which solar cells are defective: ``manufacturing/solar-defect`` with the recipe's own settings.

Five seeds on one held-out quarter of the cells, beside logistic regression on the frozen base's
features, which is fitted in the same run, and beside the scores of Deitsch et al. 2019. Theirs are
of another split of the same pictures. Cells of a module may be on both sides, here as there.
Needs the plugin `manufacturing`. Takes about ten minutes a seed on two cores. Asserts nothing.
"""

from __future__ import annotations

import quality

PUBLISHED = {"SVM (Deitsch et al. 2019)": "0.824", "CNN (Deitsch et al. 2019)": "0.884"}

if __name__ == "__main__":
    quality.main(__doc__, "manufacturing/solar-defect", PUBLISHED)
