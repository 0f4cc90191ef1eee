"""The LoRA adapters that this domain can train."""

from __future__ import annotations

from trunkline.contracts import Gate, RecipeSpec, Settings, Template

RECIPES: tuple[RecipeSpec, ...] = (
    RecipeSpec(
        name="medical/icd10-chapter",
        description="ICD-10-CM chapter of a diagnosis",
        dataset="medical/icd10-chapter",
        task="classification",
        template=Template(prompt="Diagnosis: {text}", clean=("strip", "squeeze")),
        settings=Settings(num_train_epochs=2),
        loss="medical/hierarchical",
        metrics=("accuracy", "macro_f1", "medical/hierarchy_distance"),
        gate=Gate(metric="accuracy"),
    ),
    RecipeSpec(
        name="medical/icd10-title",
        description="title of the ICD-10-CM category of a condition",
        dataset="medical/icd10-title",
        task="generation",
        template=Template(
            prompt="Give the ICD-10-CM category title for: {text}",
            chat=True,
            system="You assign ICD-10-CM categories.",
        ),
        settings=Settings(num_train_epochs=2),
        transforms=("medical/without-nos",),
        metrics=("exact_match", "medical/title_overlap"),
        gate=Gate(metric="exact_match"),
        baselines=("few-shot", "nearest"),
        max_new_tokens=40,
    ),
)
