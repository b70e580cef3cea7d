"""What a study found: tables, a plot with confidence bands, and the same photos through every method."""

import csv
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from vqhps.crop import crop_image
from vqhps.data.crops import crop_places, plain_crops
from vqhps.errors import VqhpsError
from vqhps.evaluation.coco import LabelledPerson, labelled_people
from vqhps.evaluation.torch_model import torch_model
from vqhps.geometry import crop_from_box, default_focal
from vqhps.runtime.export_mesh import whole_file, write_png
from vqhps.runtime.photo import read_photo
from vqhps.runtime.render import person_color, render_crop
from vqhps.study import KEPT, Row, Study, interval

_BEGIN, _END = "<!-- study -->", "<!-- /study -->"
_SHOWN, _PANEL_PX, _LABEL_PX = 8, 224, 28  # photos in the gallery (half of them rendered); side of a picture; of a line
_SHORT = tuple(name.removeprefix("standard ") for name in KEPT)
_PA = "standard PA-MPJPE"
Found = dict[str, Any]


def write_report(study: Study, rows: Sequence[Row], ablations: Sequence[Row], docs: Path | None) -> Path:
    """Write `report.md`, `scarce.png` and `scarce_gallery.png` into the study's folder and, if asked, into docs.

    Raises:
        VqhpsError: the file of the docs lacks the section.
    """
    plot(rows, study.out / "scarce.png")
    write_png(study.out / "scarce_gallery.png", gallery(study, rows))
    report = study.out / "report.md"
    content = "\n".join(_lines(study, rows, ablations)) + "\n"
    with whole_file(report) as temporary:
        temporary.write_text(content, encoding="utf-8")
    if docs is not None:
        text = docs.read_text(encoding="utf-8")
        before, begin, rest = text.partition(_BEGIN)
        _, end, after = rest.partition(_END)
        if not begin or not end:
            raise VqhpsError(f"{docs} has no section between {_BEGIN} and {_END} to write to")
        with whole_file(docs) as temporary:
            temporary.write_text(f"{before}{_BEGIN}\n{content}{_END}{after}", encoding="utf-8")
        for picture in ("scarce.png", "scarce_gallery.png"):
            shutil.copyfile(study.out / picture, docs.parent / picture)
    return report


def _lines(study: Study, rows: Sequence[Row], ablations: Sequence[Row]) -> list[str]:
    config, names = study.config, list(rows[0].measures[0]["bodily"])
    photos = all("photos" in found for row in rows for found in row.measures)
    lines = [_setting(study), "", *_errors_table("method", rows, photos), ""]
    lines += ["![Errors over the number of training samples](scarce.png)", ""]
    lines += ["Same photos, largest training set, first seed:", "", "![Gallery](scarce_gallery.png)", ""]
    lines += _credits(study)
    truth = study.truth()
    lines += ["### How bodily", ""]
    lines += _table(
        ["method", "samples", *names],
        [["true meshes", "", *(f"{truth[n]:.3f}" for n in names)]]
        + [[r.name, str(r.size), *(r.cell(partial(_of, "bodily", n), 3) for n in names)] for r in rows],
    )
    hard = list(rows[0].measures[0]["hard"])
    lines += ["", "### Dark and hard", "", f"PA-MPJPE, mm, on {config.hard_samples} changed crops.", ""]
    lines += _table(
        ["method", "samples", *hard],
        [[r.name, str(r.size), *(r.cell(partial(_of, "hard", n, _PA)) for n in hard)] for r in rows],
    )
    last = [row for row in rows if row.size == rows[-1].size]
    times = study.times([row.runs[0] for row in last])
    lines += ["", "### Cost", "", "Measured in turns; a step without the optimizer, on kept features.", ""]
    lines += _table(
        ["method", "parameters", "a step, ms", "a prediction, ms"],
        [[r.name, f"{r.measures[0]['parameters']:,}", *(f"{v:.1f}" for v in times[r.name].values())] for r in last],
    )
    return [*lines, "", "### Ablations", "", *_errors_table("variant", ablations, False, names)] if ablations else lines


def _setting(study: Study) -> str:
    """What the numbers are of, in a paragraph."""
    config, model = study.config, study.config.entries[0].model
    seeds, rates = ", ".join(map(str, config.seeds)), ", ".join(f"{rate:g}" for rate in config.rates)
    training = config.training
    return (
        f"{training.steps} steps of {training.batch_size} crops for every run, seeds {seeds}; backbone "
        f"`{model.backbone}`, its first {model.frozen_stages} parts frozen, {training.kept_views} kept views a sample; "
        f"rates tried, on {config.rate_size} samples: {rates}. Errors in mm under the protocol `standard` on "
        f"{min(config.test_samples, len(study.test))} test samples; ± is half of the 95 % interval over seeds "
        "(Student's t)."
    )


def _of(*keys: str | Found) -> Any:
    """What measures hold under keys, one in the other; the measures come last."""
    *path, found = keys
    for key in path:
        found = found[key]  # type: ignore[index]
    return found


def _errors_table(what: str, rows: Sequence[Row], photos: bool, bodily: Sequence[str] = ()) -> list[str]:
    columns = [("test", key, 3 if key.startswith("PCK") else 1) for key in KEPT]
    columns += [("photos", "PCK@0.1", 3)] * photos + [("bodily", name, 3) for name in bodily]
    head = [*_SHORT, *["photos PCK@0.1"] * photos, *bodily]
    cells = [[row.cell(partial(_of, part, key), digits) for part, key, digits in columns] for row in rows]
    begin = [[row.name, str(row.size), f"{row.runs[0].rate:g}"] for row in rows]
    return _table([what, "samples", "rate", *head], [[*a, *b] for a, b in zip(begin, cells, strict=True)])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw PVE and PA-MPJPE over the number of samples, a line a method, with its confidence band."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    sizes = sorted({row.size for row in rows})
    for axes, key in zip(figure.subplots(1, 2), ("standard PVE", "standard PA-MPJPE"), strict=True):
        for number, name in enumerate(dict.fromkeys(row.name for row in rows)):
            mine = [row.values(lambda m: m["test"][key]) for row in rows if row.name == name]  # noqa: B023
            mean, half = np.array([v.mean() for v in mine]), np.array([interval(v) for v in mine])
            x = [row.size for row in rows if row.name == name]
            axes.plot(x, mean, "osDv^P"[number % 6] + "-", color=f"C{number}", label=name)
            axes.fill_between(x, mean - half, mean + half, color=f"C{number}", alpha=0.15, linewidth=0)
        axes.set(xlabel="training samples", ylabel=f"{key.removeprefix('standard ')}, mm", xscale="log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def gallery(study: Study, rows: Sequence[Row]) -> UInt8[np.ndarray, "H W 3"]:
    """Photos, one a line, and over each the mesh of every method: first seed, largest number of samples."""
    crops, places = _shown(study)
    last = [row for row in rows if row.size == rows[-1].size]
    faces = None
    columns = [list(crops)]
    for number, row in enumerate(last):
        model = study.load(row.runs[0])
        faces = model.tokenizer.mesh.get_buffer("faces").numpy()
        bodies = torch_model(model, study.memory)(crops, places)
        columns.append([
            render_crop(c, v, camera, faces, person_color(number))
            for c, v, camera in zip(crops, bodies.vertices, bodies.camera, strict=True)
        ])  # fmt: skip
    panels = [
        np.concatenate([np.asarray(Image.fromarray(p).resize((_PANEL_PX,) * 2)) for p in line], 1)
        for line in zip(*columns, strict=True)
    ]
    picture = Image.fromarray(np.pad(np.concatenate(panels), ((_LABEL_PX, 0), (0, 0), (0, 0)), constant_values=255))
    for number, label in enumerate(("photo", *(f"{row.name}, {row.size:,}" for row in last))):
        place = ((number + 0.5) * _PANEL_PX, _LABEL_PX / 2)
        ImageDraw.Draw(picture).text(place, label, "black", ImageFont.load_default(16), anchor="mm")
    return np.asarray(picture)


def _shown(study: Study) -> tuple[np.ndarray, np.ndarray]:
    """Crops and their places: test samples at even distances and, if there are photos, as many people in those."""
    size, config = study.config.training.final_image_size, study.config
    count = _SHOWN // 2 if config.photos else _SHOWN
    rows = np.unique(np.linspace(0, len(study.test) - 1, count).astype(int))
    crops, places = [plain_crops(study.test, rows, size)], [crop_places(study.test, rows)]
    for person in _shown_people(study):
        photo = read_photo(person.photo)
        center, side = (x[0] for x in crop_from_box(person.box[None]))
        wide = np.array(photo.image.shape[1::-1])
        focal = photo.focal or default_focal(int(wide[0]), int(wide[1]))
        crops.append(crop_image(photo.image, center, float(side), size)[None])
        places.append(np.array([[*(center - wide / 2), side]]) / focal)
    return np.concatenate(crops), np.concatenate(places).astype(np.float32)


def _shown_people(study: Study) -> list[LabelledPerson]:
    """The people of the gallery in real photos."""
    if not study.config.photos:
        return []
    people = labelled_people(Path(study.config.photos))
    return [people[i] for i in np.unique(np.linspace(0, len(people) - 1, _SHOWN // 2).astype(int))]


def _credits(study: Study) -> list[str]:
    """Whose photos the gallery shows, by the `ATTRIBUTION.tsv` beside them (file, license, flickr_url), if any."""
    people, listing = _shown_people(study), Path(study.config.photos or "") / "ATTRIBUTION.tsv"
    if not people or not listing.is_file():
        return []
    with listing.open(encoding="utf-8", newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}
    names = dict.fromkeys(person.photo.name for person in people)
    told = [f"[{n}]({rows[n]['flickr_url']}) ({rows[n]['license']})" for n in names if n in rows]
    return [f"Photos, cut, with meshes drawn over them: {', '.join(told)}.", ""]
