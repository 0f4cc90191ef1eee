"""Where in a picture an adapter looks: Grad-CAM (Selvaraju et al. 2017) on the last feature map.

Captum computes it (the extra ``trunkline[explain]``). A convolutional base has feature maps, a
vision transformer has none.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trunkline.bases import load_adapted_image
from trunkline.data.pictures import decode, prepare, region, to_tensor
from trunkline.errors import NotFoundError, UsageError, one_line
from trunkline.tasks import task_from_json

if TYPE_CHECKING:
    import numpy as np
    import torch

    from trunkline.adapters.artifact import Artifact
    from trunkline.bases import ImageBase
    from trunkline.images import ImageSource

_OPACITY = 0.65


@dataclass(frozen=True, slots=True, eq=False)
class HeatMap:
    """How much each part of a picture speaks for an output.

    Attributes:
        output: what is explained: a label, or ``value`` for the number of a regression.
        values: ``[height, width]`` float32 from 0 to 1, one for each position of the feature map;
            all 0 where nothing speaks for the output.
        region: left, top, right and bottom of the part of the picture that the adapter reads, in
            pixels; the map covers it.
        pixels: the picture, ``[height, width, 3]`` uint8.
    """

    output: str
    values: np.ndarray
    region: tuple[int, int, int, int]
    pixels: np.ndarray

    def to_png(self) -> bytes:
        """The picture with the map over it; what the adapter does not read is gray."""
        import numpy as np
        from PIL import Image, ImageOps

        left, top, right, bottom = self.region
        picture = Image.fromarray(self.pixels)
        part = picture.crop(self.region)
        heat = Image.fromarray(self.values).resize(part.size, Image.Resampling.BILINEAR)
        levels = np.asarray(heat).clip(0, 1)
        color = ImageOps.colorize(
            Image.fromarray((255 * levels).astype(np.uint8)), "navy", "yellow", mid="red"
        )
        mask = Image.fromarray((255 * _OPACITY * levels).astype(np.uint8))
        shown = ImageOps.grayscale(picture).convert("RGB")
        shown.paste(Image.composite(color, part, mask), (left, top, right, bottom))
        stream = io.BytesIO()
        shown.save(stream, "PNG")
        return stream.getvalue()


def explain(
    artifact: Artifact, base: ImageBase, picture: ImageSource, output: str | None = None
) -> HeatMap:
    """Compute the heat map of a picture; loads a copy of the base with the adapter.

    Args:
        artifact: of an adapter that reads pictures.
        base: that of the adapter.
        picture: any that the adapter answers.
        output: the label to explain; by default the most probable one. Not of a regression.

    Raises:
        NotFoundError: the adapter has no such label.
        UsageError: the base has no feature map, or Captum is not installed.
        DataError, TooLargeError: the picture can't be decoded.
    """
    import torch

    gradients = _captum()
    task = task_from_json(dict(artifact.manifest.task))
    labels = list(getattr(task, "labels", ()))
    if output is not None and output not in labels:
        known = f"Its labels: {', '.join(labels)}." if labels else "It predicts a number."
        raise NotFoundError.named("label", output, labels, known)
    preprocessing = artifact.manifest.make_preprocessing()
    pixels = decode(picture.read(), picture.name)
    values = to_tensor(prepare(pixels, preprocessing), preprocessing)[None]
    assert task.head_size is not None
    model = load_adapted_image(
        base.info.name, artifact.folder, task.head_size, device=str(base.device)
    )
    layer, logits = _last_map(model, values, base.info.name)
    if output is None and labels:
        output = labels[int(logits[0].argmax())]
    index = labels.index(output) if output is not None else 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Captum sets what the input lacks
        map_ = gradients(lambda batch: model(pixel_values=batch).logits, layer).attribute(
            values.to(base.device), target=index, relu_attributions=True
        )
    heat: torch.Tensor = map_[0, 0].detach().float().cpu()
    most = float(heat.max())
    return HeatMap(
        output="value" if output is None else output,
        values=(heat / most if most > 0 else torch.zeros_like(heat)).numpy(),
        region=region((pixels.shape[1], pixels.shape[0]), preprocessing),
        pixels=pixels,
    )


def _captum() -> Any:
    """Captum's Grad-CAM."""
    try:
        from captum.attr import LayerGradCam
    except ImportError as error:
        raise UsageError(
            f"Heat maps need the package captum: {one_line(error)}.",
            "Run: pip install 'trunkline[explain]'",
        ) from None
    return LayerGradCam


def _last_map(model: Any, values: torch.Tensor, name: str) -> tuple[Any, torch.Tensor]:
    """The last module with a feature map ``[1, channels, height, width]``, and the outputs.

    Raises:
        UsageError: the backbone ends in another form, such as the tokens of a ViT.
    """
    import torch

    image_model = model.get_base_model()
    backbone = getattr(image_model, image_model.base_model_prefix)
    maps: list[Any] = []
    hidden: list[torch.Tensor] = []

    def note_map(module: Any, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.dim() == 4 and max(output.shape[2:]) > 1:
            maps.append(module)

    def note_hidden(_module: Any, _inputs: Any, output: Any) -> None:
        hidden.append(output.last_hidden_state)

    handles = [module.register_forward_hook(note_map) for module in backbone.modules()]
    handles.append(backbone.register_forward_hook(note_hidden))
    try:
        with torch.inference_mode():
            logits = model(pixel_values=values.to(model.device)).logits
    finally:
        for handle in handles:
            handle.remove()
    if hidden[0].dim() != 4 or not maps:
        raise UsageError(
            f"The base {name!r} has no feature map to explain a picture by: it is not "
            "convolutional.",
            "Train the adapter on a convolutional base, such as efficientnet-lite0 or a ResNet.",
        )
    return maps[-1], logits
