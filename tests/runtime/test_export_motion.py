"""Files of motion, opened by readers that are not ours."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pybvh
import pygltflib
import pytest
import trimesh
from scipy.spatial.transform import Rotation, Slerp

from rigged_people import VIEW, person, two_people
from vqhps.runtime.body_motion import PersonMotion, Timeline, write_bvh, write_joints_csv
from vqhps.runtime.export_mesh import y_up
from vqhps.runtime.export_motion import write_animation_glb
from vqhps.runtime.rig import default_rig

_VALIDATE = """
const validator = require(process.argv[1]), bytes = new Uint8Array(require('fs').readFileSync(process.argv[2]));
validator.validateBytes(bytes).then((report) => console.log(JSON.stringify(report)));
"""
_TYPES = {5121: "u1", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}


@pytest.fixture(scope="module")
def people() -> list[PersonMotion]:
    return two_people()


@pytest.fixture(scope="module")
def file(people, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("glb") / "a.glb"
    write_animation_glb(path, people, default_rig(), VIEW)
    return path


class Scene:
    """A skinned glTF file by the specification: what it shows at a time."""

    def __init__(self, path: Path) -> None:
        self.file = pygltflib.GLTF2().load(str(path))
        self.blob = self.file.binary_blob()

    def array(self, number: int) -> np.ndarray:
        accessor = self.file.accessors[number]
        view = self.file.bufferViews[accessor.bufferView]
        width = _WIDTHS[accessor.type]
        kind = np.dtype(_TYPES[accessor.componentType])
        values = np.frombuffer(
            self.blob, kind, accessor.count * width, (view.byteOffset or 0) + (accessor.byteOffset or 0)
        )
        values = values.reshape(-1, width)
        return values / 255 if accessor.normalized else values

    def _value(self, node: int, path: str, time: float, default: list[float]) -> np.ndarray:
        for channel in self.file.animations[0].channels if self.file.animations else []:
            if (channel.target.node, channel.target.path) == (node, path):
                sampler = self.file.animations[0].samplers[channel.sampler]
                times, values = self.array(sampler.input)[:, 0], self.array(sampler.output)
                time = np.clip(time, times[0], times[-1])
                if sampler.interpolation == "STEP":
                    return values[np.searchsorted(times, time, side="right") - 1]
                if path == "rotation":
                    return Slerp(times, Rotation.from_quat(values))(time).as_quat()
                return np.array([np.interp(time, times, column) for column in values.T])
        return np.array(getattr(self.file.nodes[node], path) or default)

    def _matrix(self, node: int, time: float) -> np.ndarray:
        matrix = np.eye(4)
        turn = Rotation.from_quat(self._value(node, "rotation", time, [0, 0, 0, 1])).as_matrix()
        matrix[:3, :3] = turn * self._value(node, "scale", time, [1, 1, 1])
        matrix[:3, 3] = self._value(node, "translation", time, [0, 0, 0])
        parents = [i for i, other in enumerate(self.file.nodes) if node in (other.children or [])]
        return self._matrix(parents[0], time) @ matrix if parents else matrix

    def meshes(self, time: float) -> dict[str, np.ndarray]:
        """Posed vertices (V, 3) by the name of the node."""
        found = {}
        for node in self.file.nodes:
            if node.mesh is not None:
                skin, primitive = self.file.skins[node.skin], self.file.meshes[node.mesh].primitives[0]
                inverse = self.array(skin.inverseBindMatrices).reshape(-1, 4, 4).transpose(0, 2, 1)
                bones = np.stack([self._matrix(joint, time) for joint in skin.joints]) @ inverse
                points, which, shares = (
                    self.array(getattr(primitive.attributes, name)) for name in ("POSITION", "JOINTS_0", "WEIGHTS_0")
                )
                blend = np.einsum("vn,vnij->vij", shares, bones[which])
                found[node.name] = np.einsum("vij,vj->vi", blend, np.pad(points, ((0, 0), (0, 1)), constant_values=1))[
                    :, :3
                ]
        return found


def test_glb_moves_like_the_meshes(file, people):
    scene, rig = Scene(file), default_rig()
    for moment, frame in ((0, 10), (3, 13), (11, 21)):
        shown = scene.meshes(moment / 25)
        for one in people:
            where = np.flatnonzero(one.frames == frame)
            mesh = shown[f"person {one.person}"]
            if len(where):
                expected = y_up(one.vertices(rig, slice(where[0], where[0] + 1)))[0]
                assert np.linalg.norm(mesh - expected, axis=1).max() < 1e-4
            else:
                assert np.ptp(mesh, axis=0).max() < 1e-6  # nobody: scaled to a point


def test_glb_between_frames_and_in_gaps(file, people):
    scene = Scene(file)
    between = scene.meshes(3.5 / 25)
    ends = [scene.meshes(time / 25)["person 0"] for time in (3, 4)]
    assert np.linalg.norm(between["person 0"] - (ends[0] + ends[1]) / 2, axis=1).mean() < 0.002
    assert np.ptp(scene.meshes(5.1 / 25)["person 4"], axis=0).max() < 1e-6
    assert np.ptp(scene.meshes(7.1 / 25)["person 4"], axis=0).max() > 1


def test_glb_holds_the_camera_and_trimesh_opens_it(file):
    content = pygltflib.GLTF2().load(str(file))
    lens = content.cameras[0].perspective
    assert lens.yfov == pytest.approx(2 * np.arctan(360 / 1800)) and lens.aspectRatio == pytest.approx(640 / 360)
    node = next(node for node in content.nodes if node.camera == 0)
    assert node.translation is None and node.rotation is None
    scene = trimesh.load(file)
    assert len(scene.geometry) == 2
    for mesh in scene.geometry.values():
        assert len(mesh.faces) == len(default_rig().faces) and mesh.volume > 0.02


def test_still_glb(tmp_path):
    one, rig = person(0, np.zeros(1, int), 3), default_rig()
    write_animation_glb(tmp_path / "a.glb", [one], rig, VIEW)
    scene = Scene(tmp_path / "a.glb")
    assert scene.file.animations == []
    np.testing.assert_allclose(scene.meshes(0)["person 0"], y_up(one.vertices(rig))[0], atol=1e-4)


@pytest.mark.parametrize("still", [False, True])
def test_khronos_validator(file, tmp_path, still):
    """Needs node and the npm package gltf-validator, whose folder VQHPS_GLTF_VALIDATOR names."""
    package = os.environ.get("VQHPS_GLTF_VALIDATOR")
    if package is None:
        pytest.skip("no glTF validator: `npm install gltf-validator`, and set VQHPS_GLTF_VALIDATOR to its folder")
    if still:
        file = tmp_path / "a.glb"
        write_animation_glb(file, [person(0, np.zeros(1, int), 3)], default_rig(), VIEW)
    done = subprocess.run(["node", "-e", _VALIDATE, package, str(file)], capture_output=True, text=True, check=True)
    issues = json.loads(done.stdout)["issues"]
    assert issues["numErrors"] == issues["numWarnings"] == 0, issues["messages"]


def test_bvh_has_our_joints(people, tmp_path):
    """By pybvh, within a tenth of a millimetre, in the frames of the whole clip; a pose is held where there is none."""
    rig, timeline = default_rig(), Timeline.of(people)
    for one in people:
        write_bvh(tmp_path / "a.bvh", one, rig, timeline)
        found = pybvh.read_bvh_file(tmp_path / "a.bvh")
        assert found.frame_count == 12 and found.frame_time == pytest.approx(1 / 25)
        positions = found.joint_positions() / 100
        order = [found.joint_names.index(name) for name in rig.names]
        held = [np.flatnonzero(one.frames <= max(frame, one.frames[0]))[-1] for frame in range(10, 22)]
        np.testing.assert_allclose(positions[:, order], y_up(one.joints(rig))[held], atol=1e-4)


def test_csv_has_our_joints(people, tmp_path):
    rig = default_rig()
    write_joints_csv(tmp_path / "a.csv", people, rig)
    table = np.genfromtxt(tmp_path / "a.csv", delimiter=",", names=True)
    assert table["frame"].tolist() == sorted(table["frame"].tolist()) and len(table) == 18
    own = table[table["person"] == 4]
    np.testing.assert_allclose(own["time"], people[1].times, atol=1e-5)
    found = np.stack([own[f"LeftHand_{axis}"] for axis in "xyz"], 1)
    np.testing.assert_allclose(found, people[1].joints(rig)[:, rig.names.index("LeftHand")], atol=1e-5)
