"""From a photo to meshes in five lines: `python examples/predict_photo.py photo.jpg [x0 y0 x1 y1]`."""

import sys
from pathlib import Path

from vqhps import Predictor
from vqhps.runtime.photo import read_photo


def main(path: Path, box: list[float] | None) -> None:
    """Print where each person is, in metres from the camera, and how large the mesh is."""
    photo = read_photo(path)
    for person in Predictor().predict(photo.image, boxes=[box] if box else None, focal=photo.focal):
        x, y, z = person.translation
        height = person.vertices[:, 1].max() - person.vertices[:, 1].min()
        print(f"{z:.1f} m away, {x:+.1f} m right, {y:+.1f} m down; the mesh spans {height:.2f} m from top to bottom")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [float(v) for v in sys.argv[2:6]] or None)
