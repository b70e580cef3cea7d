"""A batch of crops straight through the model: no detector, no full frame. Run it in a folder that has a photo.jpg."""

import numpy as np

from vqhps.crop import crop_image
from vqhps.geometry import crop_from_box
from vqhps.runtime.bundle import default_bundle
from vqhps.runtime.photo import read_photo

bundle, image = default_bundle(), read_photo("photo.jpg").image
boxes = np.array([[14.0, 16.0, 363.0, 512.0], [40.0, 5.0, 440.0, 510.0]])  # x0, y0, x1, y1 in pixels
squares = zip(*crop_from_box(boxes, bundle.info.crop_scale), strict=True)  # centre and side of each
crops = np.stack([crop_image(image, center, side, bundle.info.input_size) for center, side in squares])
output = bundle.run(crops)  # crops: (N, S, S, 3) uint8 RGB
print(f"tokens {output.indices.shape}, vertices {output.vertices.shape}, cameras {output.camera.shape}")
