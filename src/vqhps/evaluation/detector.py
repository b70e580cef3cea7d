"""Recall and precision of a person detector on a folder of COCO-annotated photos."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vqhps.errors import VqhpsError
from vqhps.runtime.detect import Detection, Detector, box_iou

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8

_IOU = 0.5
_SIZES = {
    "small": (0.0, 32.0),
    "medium": (32.0, 96.0),
    "large": (96.0, np.inf),
}  # COCO's classes, root of the box area in px


def evaluate_detector(detector: Detector, coco_dir: Path | str) -> dict[str, Any]:
    """Measure a detector against person boxes at IoU 0.5.

    Every annotated box counts in the recall, crowd regions too (no single person can match one: they are misses). As in
    COCO's protocol a detection that lies in a crowd region is left out of the precision. Matching is greedy, best score
    first.

    Args:
        detector: finds the people of an RGB image.
        coco_dir: holds `person_keypoints_free.json` (COCO format), its photos in `images/` and photos without people in
            `background/`.

    Returns:
        `recall` and `precision` in [0,1] over the photos with people; `boxes`, `detections`; `recall_*` and `boxes_*`
        for boxes of side under 32 px (`small`), 32-96 px (`medium`) and above (`large`); `mean_iou` of the matches;
        `background_photos`, `false_positives_per_background_photo`; `ms_per_photo`, the median of the detector alone
        over all photos; `iou`, the threshold; `val2017`, the same of the matches in photos of COCO's validation set, if
        any and others as well: detectors are trained on its training set.

    Raises:
        VqhpsError: the folder has no such annotations or photos.
    """
    folder = Path(coco_dir)
    photos = _annotated_boxes(folder)
    times: list[float] = []
    detector(_read_rgb(folder / "images" / next(iter(photos))))  # the first call pays for warming up
    matches, validation = [], []
    for name, (boxes, crowd, unseen) in photos.items():
        found = _timed(detector, _read_rgb(folder / "images" / name), times)
        matches.append((*match(found, boxes, crowd), boxes))
        validation += matches[-1:] if unseen else []
    background = sorted((folder / "background").glob("*.jpg"))
    false = [len(_timed(detector, _read_rgb(path), times)) for path in background]
    return {
        **_summary(matches),
        "background_photos": len(background),
        "false_positives_per_background_photo": float(np.mean(false)) if background else 0.0,
        "ms_per_photo": float(np.median(times) * 1e3),
        "iou": _IOU,
        **({"val2017": _summary(validation)} if 0 < len(validation) < len(matches) else {}),
    }


def _summary(matches: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Recall, precision and mean IoU from what `match` says of each photo, and its boxes."""
    hits, overlaps, boxes = (np.concatenate([found[part] for found in matches]) for part in (0, 1, 3))
    detections = int(sum(counts.sum() for _, _, counts, _ in matches))
    return {
        "recall": float(hits.mean()),
        "precision": float(hits.sum() / max(detections, 1)),
        "boxes": int(hits.size),
        "detections": detections,
        **_by_size(hits, np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))),
        "mean_iou": float(overlaps[hits].mean()) if hits.any() else 0.0,
    }


def match(
    found: list[Detection], boxes: Float[np.ndarray, "N 4"], crowd: Bool[np.ndarray, "N"]
) -> tuple[Bool[np.ndarray, "N"], Float[np.ndarray, "N"], Bool[np.ndarray, "D"]]:
    """Match detections to boxes (xyxy px) one to one, best score first.

    Returns:
        Which boxes are found, at which IoU, and which detections count (all but those mostly inside a crowd region).
    """
    hit, overlap, counts = np.zeros(len(boxes), bool), np.zeros(len(boxes)), np.ones(len(found), bool)
    for index in sorted(range(len(found)), key=lambda i: -found[i].score):
        box = found[index].box
        iou = np.where(hit | crowd, 0.0, box_iou(box[None], boxes)[0])
        if iou.size and iou.max() >= _IOU:
            best = int(iou.argmax())
            hit[best], overlap[best] = True, iou[best]
        else:
            counts[index] = not _inside(box, boxes[crowd])
    return hit, overlap, counts


def _inside(box: Float[np.ndarray, "4"], regions: Float[np.ndarray, "R 4"]) -> bool:
    """Whether at least half of `box` lies in one of the regions."""
    shared = np.clip(np.minimum(box[2:], regions[:, 2:]) - np.maximum(box[:2], regions[:, :2]), 0, None).prod(1)
    return bool((shared >= _IOU * (box[2:] - box[:2]).prod()).any())


def _by_size(hits: Bool[np.ndarray, "N"], side: Float[np.ndarray, "N"]) -> dict[str, float | int]:
    """Recall and number of boxes of each size class."""
    result: dict[str, float | int] = {}
    for name, (low, high) in _SIZES.items():
        chosen = hits[(side >= low) & (side < high)]
        result[f"recall_{name}"] = float(chosen.mean()) if chosen.size else float("nan")
        result[f"boxes_{name}"] = int(chosen.size)
    return result


def _timed(
    detector: Callable[[np.ndarray], list[Detection]], image: UInt8[np.ndarray, "H W 3"], times: list[float]
) -> list[Detection]:
    """Run the detector and append the seconds it took."""
    start = time.perf_counter()
    found = detector(image)
    times.append(time.perf_counter() - start)
    return found


def _annotated_boxes(folder: Path) -> dict[str, tuple[Float[np.ndarray, "N 4"], Bool[np.ndarray, "N"], bool]]:
    """Boxes (xyxy px), crowd flags, and whether it is of the validation set, of each photo that has any, by file
    name."""
    path = folder / "person_keypoints_free.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        unseen = {image["file_name"]: "/val2017/" in image.get("coco_url", "") for image in content["images"]}
        rows: dict[str, list[tuple[list[float], bool]]] = {}
        for item in content["annotations"]:
            x, y, width, height = item["bbox"]
            rows.setdefault(names[item["image_id"]], []).append(
                ([x, y, x + width, y + height], bool(item.get("iscrowd")))
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VqhpsError(f"{path} cannot be read as COCO person annotations ({error!r})") from error
    if not rows:
        raise VqhpsError(f"{path} has no boxes")
    return {
        name: (np.array([r[0] for r in row], float), np.array([r[1] for r in row]), unseen[name])
        for name, row in sorted(rows.items())
    }


def _read_rgb(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """Read a photo as (H,W,3) uint8 RGB."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise VqhpsError(f"{path} cannot be read as an image ({error})") from error
