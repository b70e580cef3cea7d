"""Remake the pictures of the gallery: `python docs/make_gallery.py --test FOLDER`, with the environment of `make test`.

FOLDER holds the rendered test people (`vqhps prepare synthetic --split test --count 2048 --seed 1`). Of its first 256
those are drawn whose errors are nearest to some quantiles: nobody chooses good ones. Prints what each picture shows.
"""

import argparse
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from PIL import Image
from skimage import data

from vqhps import Predictor
from vqhps.body.anny import anny_body
from vqhps.data.crops import crop_rotations, plain_crops
from vqhps.data.sample import Shards, find_shards
from vqhps.evaluation.protocols import PROTOCOLS, mesh_errors
from vqhps.geometry import matrix_from_quaternion, rotate
from vqhps.runtime.photo import read_photo
from vqhps.runtime.render import person_color, render_overlay, render_row, render_side

OUT = Path(__file__).parent / "gallery"
HEIGHT, ROWS, QUANTILES = 320, 256, (0.1, 0.5, 0.9, 1.0)
GREY = np.array([0.75, 0.75, 0.75])
TO_SIDE = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])


def write(name: str, pictures: list[np.ndarray]) -> None:
    """Put pictures of any size beside each other, all `HEIGHT` px high."""
    sizes = [(round(p.shape[1] * HEIGHT / p.shape[0]), HEIGHT) for p in pictures]
    row = [cv2.resize(p, s, interpolation=cv2.INTER_AREA) for p, s in zip(pictures, sizes, strict=True)]
    Image.fromarray(np.concatenate(row, axis=1)).save(OUT / name, quality=82, optimize=True)
    print(OUT / name, (OUT / name).stat().st_size)


def draw_photos(predictor: Predictor) -> None:
    """Photos in the public domain: as it is, the meshes over it, the meshes from the side."""
    hopper = read_photo(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").image
    camera = np.repeat(data.camera()[..., None], 3, -1)
    for name, image in (("astronaut", data.astronaut()), ("cameraman", camera), ("hopper", hopper)):
        people, faces = predictor.predict(image), predictor.bundle.faces
        write(f"{name}.jpg", [image, render_overlay(image, people, faces), render_side(people, faces)])


@torch.no_grad()
def draw_test_people(predictor: Predictor, folder: Path) -> None:
    """Crop, mesh over it, mesh from the side, and the true mesh from the side in grey."""
    shards, body, info = Shards(find_shards(folder, "test")[:1]), anny_body("full"), predictor.bundle.info
    rows = np.arange(min(ROWS, len(shards)))
    crops = plain_crops(shards, rows, info.input_size, info.crop_scale)
    output = predictor.bundle.run(crops)
    pose = matrix_from_quaternion(torch.from_numpy(shards.labels["pose"][rows].astype(np.float32)))
    meshes = body.forward(pose, torch.from_numpy(shards.labels["shape"][rows])).numpy()
    true, protocol = rotate(crop_rotations(shards)[rows], meshes), PROTOCOLS["authors"]
    errors = mesh_errors(protocol, output.vertices, true, body.joint_regressors[protocol.joint_set])["PVE"]
    for quantile, row in zip(QUANTILES, np.argsort(errors)[[int(q * (len(rows) - 1)) for q in QUANTILES]], strict=True):
        box = np.array([[1 - 1 / info.crop_scale] * 2 + [1 + 1 / info.crop_scale] * 2]) * info.input_size / 2
        overlay = render_overlay(crops[row], predictor.predict(crops[row], box), body.faces)
        side = [rotate(TO_SIDE, v) for v in (output.vertices[row], true[row])]
        row_of_two = render_row(side, body.faces, [person_color(0), GREY], 2 * HEIGHT)
        print(f"quantile {quantile}: sample {row}, PVE {errors[row]:.0f} mm ({protocol.name})")
        write(f"test-{round(100 * quantile)}.jpg", [crops[row], overlay, row_of_two])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--test", type=Path, required=True, help="folder of the rendered test people")
    OUT.mkdir(exist_ok=True)
    shown = Predictor()
    draw_photos(shown)
    draw_test_people(shown, parser.parse_args().test)
