"""All photos of a folder: overlays, meshes and numbers into out/. Run it beside a folder named photos."""

from pathlib import Path

from vqhps import Predictor
from vqhps.runtime.files import predict_photos

for result in predict_photos(Predictor(), sorted(Path("photos").glob("*.jpg")), Path("out")):
    print(result.error or f"{result.photo.name}: {result.people} found, {len(result.files)} files")
