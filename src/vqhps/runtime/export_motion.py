"""The motion of people as one binary glTF 2.0 file: a mesh, a skin and a skeleton each, animated, and the camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqhps.runtime.body_motion import PersonMotion, Timeline
from vqhps.runtime.export_mesh import material, vertex_normals, whole_file, y_up
from vqhps.runtime.render import person_color
from vqhps.runtime.rig import Rig

_NEAR, _FAR = 0.05, 1000.0  # m, of the camera


@dataclass(frozen=True)
class View:
    """The camera of a photo or video: at the origin, looking along z, its principal point in the centre.

    Attributes:
        focal: px.
        size: width and height, px.
    """

    focal: float
    size: tuple[int, int]

    @property
    def fov(self) -> float:
        """Vertical field of view, rad."""
        return 2 * math.atan(self.size[1] / (2 * self.focal))


class _Scene:
    """A glTF file that grows: arrays go into the blob one by one."""

    def __init__(self) -> None:
        import pygltflib as gltf

        self.gltf = gltf
        self.content = gltf.GLTF2(asset=gltf.Asset(generator="vqhps"), scene=0, scenes=[gltf.Scene(nodes=[])])
        self._blob = bytearray()

    def array(self, values: np.ndarray, target: int | None = None, bounds: bool = False, **more: Any) -> int:
        """Add an array of vectors or scalars; the number of its accessor."""
        gltf, content = self.gltf, self.content
        width = values[0].size
        kinds = {1: gltf.SCALAR, 3: gltf.VEC3, 4: gltf.VEC4, 16: gltf.MAT4}
        types = {"u1": gltf.UNSIGNED_BYTE, "u2": gltf.UNSIGNED_SHORT, "u4": gltf.UNSIGNED_INT, "f4": gltf.FLOAT}
        flat = values.reshape(len(values), -1)
        limits = {"min": flat.min(0).tolist(), "max": flat.max(0).tolist()} if bounds else {}
        view = gltf.BufferView(buffer=0, byteOffset=len(self._blob), byteLength=values.nbytes, target=target)
        content.bufferViews.append(view)
        self._blob += np.ascontiguousarray(values).tobytes()
        self._blob += bytes(-len(self._blob) % 4)
        accessor = gltf.Accessor(
            bufferView=len(content.bufferViews) - 1,
            componentType=types[values.dtype.str[1:]],
            count=len(values),
            type=kinds[width],
            **limits,
            **more,
        )
        return self.add(content.accessors, accessor)

    def node(self, top: bool = False, **fields: Any) -> int:
        """Add a node, at the top of the scene or to become another's child; its number."""
        number = self.add(self.content.nodes, self.gltf.Node(**fields))
        if top:
            self.content.scenes[0].nodes.append(number)
        return number

    @staticmethod
    def add(things: list[Any], thing: Any) -> int:
        """Append and say where."""
        things.append(thing)
        return len(things) - 1

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        self.content.buffers = [self.gltf.Buffer(byteLength=len(self._blob))]
        self.content.set_binary_blob(bytes(self._blob))
        with whole_file(path) as temporary:
            temporary.write_bytes(b"".join(self.content.save_to_bytes()))


def write_animation_glb(path: Path, people: Sequence[PersonMotion], rig: Rig, view: View) -> None:
    """Write people as skinned meshes, and the camera that saw them.

    Axes are glTF's: x right, y up, z backward, seen from the camera, which is at the origin; time 0 is the clip's first
    frame. A person of several frames is animated: turns of the bones that move and the place of the root, linear
    between frames. Where it was not seen, its skeleton has scale 0 (interpolation STEP). A clip of one frame is still.

    Args:
        path: `.glb`.
        people: at least one.
        rig: of their bodies.
        view: field of view of the camera.
    """
    scene, timeline = _Scene(), Timeline.of(people)
    gltf = scene.gltf
    shared = {
        "indices": scene.array(
            rig.faces.astype(smallest_index(len(rig.skin_bones))).reshape(-1), gltf.ELEMENT_ARRAY_BUFFER
        ),
        "JOINTS_0": scene.array(rig.skin_bones, gltf.ARRAY_BUFFER),
        "WEIGHTS_0": scene.array(rig.skin_weights, gltf.ARRAY_BUFFER, normalized=True),
    }
    animation = gltf.Animation(name="motion")
    for person in people:
        bones = _skeleton(scene, person, rig)
        _skin(scene, person, rig, bones, shared, person_color(person.person))
        if len(timeline.frames) > 1:
            _animate(scene, animation, person, rig, bones, timeline)
    if animation.channels:
        scene.content.animations.append(animation)
    ratio = view.size[0] / view.size[1]
    lens = gltf.Perspective(yfov=view.fov, aspectRatio=ratio, znear=_NEAR, zfar=_FAR)
    scene.content.cameras.append(gltf.Camera(type="perspective", perspective=lens))
    scene.node(top=True, name="camera", camera=0)
    scene.write(path)


def smallest_index(count: int) -> type:
    """Type of vertex numbers of a mesh with so many vertices; glTF keeps the largest number for itself."""
    return np.uint16 if count < 2**16 - 1 else np.uint32


def _skeleton(scene: _Scene, person: PersonMotion, rig: Rig) -> list[int]:
    """Add the bones in the pose of the first frame; their nodes."""
    steps = person.rest.joints - person.rest.joints[np.maximum(rig.parents, 0)]
    steps[0] = y_up(person.translation[0])
    turns = gltf_turns(person)[0]
    bones = [
        scene.node(top=bone == 0, name=name, translation=steps[bone].tolist(), rotation=turns[bone].tolist())
        for bone, name in enumerate(rig.names)
    ]
    for bone, parent in enumerate(rig.parents):
        if parent >= 0:
            scene.content.nodes[bones[parent]].children.append(bones[bone])
    return bones


def gltf_turns(person: PersonMotion) -> np.ndarray:
    """(F, K, 4) float32 quaternions x, y, z, w in glTF's axes."""
    quaternion = person.quaternions()
    w, x, y, z = np.moveaxis(quaternion[:, 0], -1, 0)
    quaternion[:, 0] = np.stack([-x, w, -z, y], -1)  # half a turn about x first, as in `y_up`
    return quaternion[..., [1, 2, 3, 0]].astype(np.float32)


def _skin(
    scene: _Scene, person: PersonMotion, rig: Rig, bones: list[int], shared: dict[str, int], color: np.ndarray
) -> None:
    """Add the mesh of a person in its rest pose and bind it to its bones."""
    gltf, content = scene.gltf, scene.content
    vertices = person.rest.vertices.astype(np.float32)
    inverse = np.tile(np.eye(4, dtype=np.float32), (len(bones), 1, 1))
    inverse[:, 3, :3] = -person.rest.joints  # columns come one after the other
    attributes = gltf.Attributes(
        POSITION=scene.array(vertices, gltf.ARRAY_BUFFER, bounds=True),
        NORMAL=scene.array(vertex_normals(vertices, rig.faces), gltf.ARRAY_BUFFER),
        JOINTS_0=shared["JOINTS_0"],
        WEIGHTS_0=shared["WEIGHTS_0"],
    )
    paint = scene.add(content.materials, material(color))
    primitive = gltf.Primitive(attributes=attributes, indices=shared["indices"], material=paint)
    mesh = scene.add(content.meshes, gltf.Mesh(primitives=[primitive]))
    name = f"person {person.person}"
    skin = gltf.Skin(name=name, inverseBindMatrices=scene.array(inverse), joints=bones, skeleton=bones[0])
    scene.node(top=True, name=name, mesh=mesh, skin=scene.add(content.skins, skin))


def _animate(
    scene: _Scene, animation: Any, person: PersonMotion, rig: Rig, bones: list[int], timeline: Timeline
) -> None:
    """Add the channels of one person."""
    gltf, seconds, seen = scene.gltf, timeline.seconds(), timeline.seen(person)

    def channel(bone: int, path: str, times: int, values: np.ndarray, interpolation: str) -> None:
        sampler = gltf.AnimationSampler(input=times, output=scene.array(values), interpolation=interpolation)
        target = gltf.AnimationChannelTarget(node=bones[bone], path=path)
        number = scene.add(animation.samplers, sampler)
        animation.channels.append(gltf.AnimationChannel(sampler=number, target=target))

    times = scene.array(seconds[seen].astype(np.float32), bounds=True)
    turns = gltf_turns(person)
    for bone in np.flatnonzero(rig.moves).tolist():
        channel(bone, "rotation", times, turns[:, bone], gltf.ANIM_LINEAR)
    channel(0, "translation", times, y_up(person.translation).astype(np.float32), gltf.ANIM_LINEAR)
    if not seen.all():
        changes = np.flatnonzero(np.diff(seen, prepend=~seen[:1]))
        scale = np.repeat(seen[changes, None], 3, 1).astype(np.float32)
        channel(0, "scale", scene.array(seconds[changes].astype(np.float32), bounds=True), scale, gltf.ANIM_STEP)
