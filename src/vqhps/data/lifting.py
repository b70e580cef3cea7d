"""Bodies as key points and tokens, without images: what the first guess learns to lift from.

Many more a second than are rendered, and of more poses: limbs of different moments are put together.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from vqhps.body.anny import AnnyBody, anny_body
from vqhps.body.model import canonical
from vqhps.body.topology import random_pose
from vqhps.crop import crop_matrix
from vqhps.data.augment import AugmentConfig, random_view
from vqhps.data.bodies import mirrored
from vqhps.data.crops import FAR
from vqhps.data.mixing import mix_limbs
from vqhps.data.mocap import PoseBank
from vqhps.data.sample import CROP_SCALE
from vqhps.data.synthetic.camera import bounds, draw_camera, place_person
from vqhps.geometry import ray_rotation
from vqhps.tokenizer.mesh_vqvae import MeshVQVAE

_TRUNCATED = 0.3
_MIN_JOINTS = 6
_NEAREST = 0.1  # metres
_SPARE = 1.25  # bodies drawn for each wanted one: some are too near or too much cut
_LIKE = 8  # crops alike that errors may come from
_REACH = 1.5  # farther out, key points differ no more
_JITTER = 0.05  # radians an axis
_SHAPES = 20_000


@dataclass(frozen=True)
class LiftingStream:
    """Labels of bodies before a random camera, as `CropDataset` has them but for the image; endless, fixed by the seed.

    Attributes:
        bank: poses.
        tokenizer: for the target tokens.
        augment: how the crop varies.
        mixing: share of bodies whose limbs come from several poses.
        shapes: shape parameters to draw from; by default Anny's own distribution of adults.
    """

    bank: PoseBank
    tokenizer: MeshVQVAE
    augment: AugmentConfig = AugmentConfig()
    mixing: float = 0.5
    shapes: Float[np.ndarray, "N S"] | None = None

    @cached_property
    def body(self) -> AnnyBody:
        """The body, on its coarse mesh."""
        return anny_body("coarse")

    @cached_property
    def _shapes(self) -> Float[np.ndarray, "N S"]:
        return self.body.sample_shape(_SHAPES, np.random.default_rng(3)) if self.shapes is None else self.shapes

    @torch.no_grad()
    def batch(self, count: int, seed: tuple[int, ...]) -> dict[str, Tensor]:
        """`indices` (B,T), `rotation` (B,3,3), `keypoints2d` (B,17,2), `keypoints_weight` (B,17), `has_mesh` (B,), and
        which of the shapes each has, `drawn` (B,).

        Args:
            count: bodies; now and then a few less come, where too many drawn ones were out of view.
            seed: fixes the batch.
        """
        rng = np.random.default_rng(seed)
        spare = int(np.ceil(_SPARE * count))
        pose, world = self._poses(spare, rng)
        drawn = rng.integers(len(self._shapes), size=spare)
        vertices = self.body.forward(torch.from_numpy(pose), torch.from_numpy(self._shapes[drawn]))
        joints = (torch.from_numpy(self.body.joint_regressors["coco17"]) @ vertices).numpy()
        rows: list[int] = []
        rotations, keypoints = [], []
        for row in range(spare):
            seen = self._seen(vertices[row].numpy(), joints[row], world[row], rng)
            if seen is not None and len(rows) < count:
                rows.append(row)
                rotations.append(seen[0])
                keypoints.append(seen[1])
        points = np.stack(keypoints).astype(np.float32)
        return {
            "indices": self.tokenizer.encode(canonical(vertices[rows])),
            "rotation": torch.from_numpy(np.stack(rotations).astype(np.float32)),
            "keypoints2d": torch.from_numpy(points),
            "keypoints_weight": torch.from_numpy((np.abs(points).max(2) < FAR).astype(np.float32)),
            "has_mesh": torch.ones(len(rows)),
            "drawn": torch.from_numpy(drawn[rows]),
        }

    def _poses(
        self, count: int, rng: np.random.Generator
    ) -> tuple[Float[np.ndarray, "N K 3 3"], Float[np.ndarray, "N 3 3"]]:
        """Local rotations and the root's in the world; half of them mirrored."""
        chosen = rng.integers(len(self.bank), size=count)
        pose, world = mix_limbs(self.bank.pose[chosen], self.bank, rng, self.mixing), self.bank.rotation[chosen]
        flip = rng.random(count) < 0.5
        side = np.diag([-1.0, 1.0, 1.0]).astype(np.float32)
        pose[flip] = mirrored(pose[flip], self.body)
        world = np.where(flip[:, None, None], side @ world @ side, world)
        return pose @ random_pose(count, pose.shape[1], rng, _JITTER).numpy(), world

    def _seen(
        self,
        vertices: Float[np.ndarray, "V 3"],
        joints: Float[np.ndarray, "17 3"],
        world: Float[np.ndarray, "3 3"],
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Rotation canonical -> crop's camera, and key points in its coordinates; None if too little is in view."""
        camera = draw_camera(rng)
        yaw = Rotation.from_euler("y", rng.uniform(-np.pi, np.pi)).as_matrix()
        rotation = camera.rotation @ yaw @ world
        turned = vertices @ rotation.T.astype(np.float32)
        place = place_person(turned, camera, bool(rng.random() < _TRUNCATED), rng)
        placed = turned + place
        pixels = camera.project(joints @ rotation.T + place)
        if placed[:, 2].min() < _NEAREST or camera.inside(pixels).sum() < _MIN_JOINTS:
            return None
        outline = camera.project(placed)
        low, high = bounds(outline[camera.inside(outline)])
        center, size = (low + high) / 2, CROP_SCALE * float((high - low).max())
        turn = ray_rotation(center[None], camera.intrinsics[:1, 0], camera.intrinsics[None, :2, 2])[0]
        view = random_view(center, size, replace(self.augment, p_flip=0.0), rng)
        matrix = crop_matrix(view.center, view.size, 2, view.angle_deg)
        return view.rotated(turn.T @ rotation), pixels @ matrix[:, :2].T + matrix[:, 2] - 1


class FoundErrors:
    """The errors of found key points, moved to other bodies: those of a crop whose key points lie much alike.

    Args:
        true: key points of some crops, as `VQHPS.forward` takes them.
        found: those that a network finds there, with confidences.
    """

    def __init__(self, true: Float[Tensor, "N 17 4"], found: Float[Tensor, "N 17 4"]) -> None:
        self.places = self._places(true)
        self.errors = (found - true) * found.new_tensor([1.0, 1.0, 0.0, 1.0])
        self.confidence = found[..., 2]

    def __call__(self, true: Float[Tensor, "B 17 4"]) -> Float[Tensor, "B 17 4"]:
        """Found key points as they might be of these true ones; draws from torch's random numbers."""
        count = min(_LIKE, len(self.places))
        near = torch.cdist(self._places(true), self.places).topk(count, largest=False).indices
        chosen = near.gather(1, torch.randint(count, (len(true), 1), device=near.device))[:, 0]
        moved = true + self.errors[chosen]
        return torch.cat([moved[..., :2], self.confidence[chosen][..., None], moved[..., 3:]], 2)

    @staticmethod
    def _places(keypoints: Float[Tensor, "N 17 4"]) -> Float[Tensor, "N 51"]:
        return torch.cat([keypoints[..., :2].clamp(-_REACH, _REACH), keypoints[..., 3:]], 2).flatten(1)
