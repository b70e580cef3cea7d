"""From a photo to meshes. Run it in a folder that has a photo.jpg."""

from vqhps import Predictor
from vqhps.runtime.photo import read_photo

photo = read_photo("photo.jpg")  # upright RGB, and the focal length where the file tells it
for person in Predictor().predict(photo.image, focal=photo.focal):
    right, down, away = person.translation  # metres from the camera
    print(f"{away:.1f} m away, {right:+.1f} m right, {down:+.1f} m down; vertices {person.vertices.shape}")
