"""Garments, hair and skins of MakeHuman, bound to the vertices of its base mesh.

A `.mhclo` file binds each garment vertex to three base vertices: `sum_i w_i base_i + offset * scale`, where each axis
of `scale` is a distance between two base vertices, over a reference length.
"""

import dataclasses
import functools
from pathlib import Path

import cv2
import numpy as np
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int

from vqhps.body.anny import AnnyBody, anny_body
from vqhps.data.synthetic.material import read_picture
from vqhps.data.synthetic.split import TEST_HAIR, TEST_SHOES, TEST_SKINS, TEST_SUITS, Split, asset_names
from vqhps.errors import VqhpsError

# Groups of body faces, by the bone that moves them most: what painted clothes and materials refer to.
GROUPS = ("skin", "torso", "upper_arm", "forearm", "hips", "thigh", "shin", "foot", "eye", "mouth")
_GROUP_OF_BONE = {
    "LowerBack": "torso", "Spine": "torso", "Spine1": "torso", "Shoulder": "torso", "ForeArm": "forearm",
    "Arm": "upper_arm", "Hips": "hips", "HipJoint": "hips", "UpLeg": "thigh", "Leg": "shin", "Foot": "foot",
    "ToeBase": "foot",
}  # fmt: skip
_FIRST_INNER_VERTEX = 13380  # eyes and tongue come after the skin in the base mesh
_EYES = ((14598, 14670), (14670, 14742))
_AXES = {"x_scale": 0, "y_scale": 1, "z_scale": 2}


@dataclasses.dataclass(frozen=True)
class Part:
    """A mesh that is fitted to the base mesh: the body itself, a suit, shoes, hair or a hat.

    Attributes:
        name: asset name.
        faces: (F,3) vertex indices.
        face_uv: (F,3,2) texture coordinates of the corners, v down, in [0,1].
        face_group: (F,) `GROUPS` index on the body; 0 upper and 1 lower piece on garments.
        texture: (H,W,3 or 4) uint8 RGB(A).
        weights: (V,K) skin weights.
        base: (V,3) base vertices each vertex hangs on, with `base_weights` (V,3) and `offsets` (V,3).
        scale_pairs: (3,2) base vertices that span the x, y, z scale, over `scale_lengths` (3,).
        hides: (Vb,) base vertices that this part covers.
        normal_sum: (V,F) sparse sum of face normals at each vertex.
        one_sided: (F,) faces far from any border, whose inner side is never seen.
        coarse_faces: (C,3) fewer triangles over the same vertices, for people seen small; `coarse_from` (C,) gives the
            face each one was.
    """

    name: str
    faces: Int[np.ndarray, "F 3"]
    face_uv: Float[np.ndarray, "F 3 2"]
    face_group: Int[np.ndarray, "F"]
    texture: Int[np.ndarray, "H W C"]
    weights: Float[np.ndarray, "V K"]
    base: Int[np.ndarray, "V 3"]
    base_weights: Float[np.ndarray, "V 3"]
    offsets: Float[np.ndarray, "V 3"]
    scale_pairs: Int[np.ndarray, "3 2"]
    scale_lengths: Float[np.ndarray, "3"]
    hides: Bool[np.ndarray, "Vb"]
    normal_sum: scipy.sparse.csr_matrix
    one_sided: Bool[np.ndarray, "F"]
    coarse_faces: Int[np.ndarray, "C 3"]
    coarse_from: Int[np.ndarray, "C"]

    def fit(self, base: Float[np.ndarray, "Vb 3"]) -> Float[np.ndarray, "V 3"]:
        """Rest vertices of this part on a body, metres in body axes."""
        axes = np.arange(3)
        scale = np.abs(base[self.scale_pairs[:, 0], axes] - base[self.scale_pairs[:, 1], axes]) / self.scale_lengths
        return np.einsum("vk,vkc->vc", self.base_weights, base[self.base]) + self.offsets * scale.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Wardrobe:
    """All assets of one split. Skins map a name to a texture (H,W,3) uint8."""

    body: Part
    body_vertices: Int[np.ndarray, "V"]
    suits: dict[str, Part]
    shoes: dict[str, Part]
    hair: dict[str, Part]
    hats: dict[str, Part]
    skins: dict[str, Int[np.ndarray, "H W 3"]]
    eye: Int[np.ndarray, "E E 3"]


def load_wardrobe(data_root: Path, split: Split) -> Wardrobe:
    """Read the assets of a split.

    Args:
        data_root: folder with `clothes/`.
        split: `train` or `test`: disjoint by name.

    Raises:
        VqhpsError: a folder or file is missing.
    """
    clothes = Path(data_root) / "clothes" / "clothes"
    weights = base_weights()
    names = asset_names(clothes, TEST_SUITS | TEST_SHOES, split)
    parts = {n: read_part(clothes / n, weights) for n in names}
    hair = Path(data_root) / "clothes" / "hair"
    hairs = {n: read_part(hair / n, weights) for n in asset_names(hair, TEST_HAIR, split)}
    skins = Path(data_root) / "clothes" / "skins"
    names = [n for n in asset_names(skins, TEST_SKINS, split) if n != "textures"]
    body, used = _body_part()
    return Wardrobe(
        body=body,
        body_vertices=used,
        suits={n: p for n, p in parts.items() if "suit" in n},
        shoes={n: p for n, p in parts.items() if n.startswith("shoes")},
        hats={n: p for n, p in parts.items() if n.startswith("fedora")},
        hair=hairs,
        skins={n: _read_skin(skins / n) for n in names},
        eye=_eye_texture(),
    )


@functools.cache
def base_weights() -> Float[np.ndarray, "Vb K"]:
    """Skin weights of the base mesh with helpers, dense."""
    model = anny_body("base").model
    dense = np.zeros((len(model.template_vertices), len(model.bone_labels)), np.float32)
    index = model.vertex_bone_indices.numpy()
    np.add.at(dense, (np.arange(len(dense))[:, None], index), model.vertex_bone_weights.numpy())
    return dense / dense.sum(1, keepdims=True)


def _body_part() -> tuple[Part, Int[np.ndarray, "V"]]:
    """The visible body as a part, and its vertices in the base mesh (the order of the full mesh of Anny)."""
    body = anny_body("base")
    faces = body.faces
    used = np.unique(faces)
    uv = _face_uv(body)
    weights = base_weights()
    group = _body_groups(body, faces, weights)
    for first, last in _EYES:
        eye = (faces[:, 0] >= first) & (faces[:, 0] < last)
        points = body.template[first:last]
        centre = (points.min(0) + points.max(0)) / 2
        flat = (body.template[faces[eye]] - centre)[..., :2] / (points.max(0) - points.min(0))[:2]
        uv[eye] = flat + 0.5
    index = np.full(len(weights), -1)
    index[used] = np.arange(len(used))
    bind = np.repeat(used[:, None], 3, 1)
    one = np.tile(np.array([1, 0, 0], np.float32), (len(used), 1))
    part = Part(
        "body", index[faces].astype(np.int32), uv, group, np.zeros((1, 1, 3), np.uint8), weights[used], bind, one,
        np.zeros((len(used), 3), np.float32), np.zeros((3, 2), int), np.ones(3, np.float32),
        np.zeros(len(weights), bool), _normal_sum(index[faces], len(used)),
        np.ones(len(faces), bool), *_coarser(index[faces], body.template[used]),
    )  # fmt: skip
    return part, used


def _face_uv(body: AnnyBody) -> Float[np.ndarray, "F 3 2"]:
    """Texture coordinates of the triangles' corners, v down."""
    uv = body.model.texture_coordinates.numpy() * [1, -1] + [0, 1]
    return uv[body.model.face_texture_coordinate_indices.numpy()].astype(np.float32)


def _body_groups(body: AnnyBody, faces: Int[np.ndarray, "F 3"], weights: Float[np.ndarray, "V K"]) -> np.ndarray:
    """(F,) `GROUPS` index of each body face."""
    of_bone = np.zeros(len(body.bone_names), np.int8)
    for k, name in enumerate(body.bone_names):
        short = name.removeprefix("Left").removeprefix("Right").removeprefix("L").removeprefix("R")
        short = "LowerBack" if name == "LowerBack" else short
        of_bone[k] = GROUPS.index(_GROUP_OF_BONE.get(short, "skin"))
    group = of_bone[weights[faces].sum(1).argmax(1)]
    first = faces[:, 0]
    group[first >= _FIRST_INNER_VERTEX] = GROUPS.index("mouth")
    group[first >= _EYES[0][0]] = GROUPS.index("eye")
    return group


def _normal_sum(faces: Int[np.ndarray, "F 3"], count: int) -> scipy.sparse.csr_matrix:
    rows, columns = faces.reshape(-1), np.repeat(np.arange(len(faces)), 3)
    return scipy.sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=(count, len(faces)))


def _coarser(
    faces: Int[np.ndarray, "F 3"], rest: Float[np.ndarray, "V 3"], cell: float = 0.011
) -> tuple[Int[np.ndarray, "C 3"], Int[np.ndarray, "C"]]:
    """Merge vertices of one cell (metres) that look the same way; triangles that vanish are dropped."""
    corners = rest[faces]
    normal = _normal_sum(faces, len(rest)) @ np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    main = np.abs(normal).argmax(1)
    facing = main * 2 + (np.take_along_axis(normal, main[:, None], 1)[:, 0] > 0)
    key = np.concatenate([np.floor(rest / cell).astype(int), facing[:, None]], 1)
    _, first, cluster = np.unique(key, axis=0, return_index=True, return_inverse=True)
    merged = first[cluster.reshape(-1)][faces]
    a, b, c = merged.T
    kept = np.flatnonzero((a != b) & (b != c) & (a != c))
    _, once = np.unique(np.sort(merged[kept], 1), axis=0, return_index=True)
    kept = kept[np.sort(once)]
    return merged[kept].astype(np.int32), kept


def _far_from_border(faces: Int[np.ndarray, "F 3"], count: int, rings: int = 5) -> Bool[np.ndarray, "F"]:
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1)
    unique, uses = np.unique(edges, axis=0, return_counts=True)
    near = np.zeros(count, bool)
    near[unique[uses == 1]] = True
    for _ in range(rings):
        near[faces[near[faces].any(1)]] = True
    return ~near[faces].any(1)


def read_part(folder: Path, weights: Float[np.ndarray, "Vb K"]) -> Part:
    """Read a garment folder: the first `.mhclo`, its mesh and its diffuse texture.

    Raises:
        VqhpsError: a file is missing.
    """
    clo = _only(folder, "*.mhclo")
    vertices, hides, scales = _read_mhclo(clo, len(weights))
    base, blend, offsets = vertices[:, :3].astype(int), vertices[:, 3:6], vertices[:, 6:]
    count, faces, uv = _read_obj(_only(folder, f"{clo.stem}.obj"))
    if count != len(vertices):
        raise VqhpsError(
            f"{clo} binds {len(vertices)} vertices, its mesh has {count}: the files do not belong together"
        )
    texture = read_picture(_texture_path(folder))
    rest = np.einsum("vk,vkc->vc", blend, anny_body("base").template[base])
    skin = np.einsum("vk,vkb->vb", blend.clip(0), weights[base])
    return Part(
        folder.name, faces.astype(np.int32), uv, _pieces(folder.name, faces, base), texture,
        (skin / skin.sum(1, keepdims=True)).astype(np.float32), base, blend.astype(np.float32),
        offsets.astype(np.float32), *scales, hides, _normal_sum(faces, count), _far_from_border(faces, count),
        *_coarser(faces, rest),
    )  # fmt: skip


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise VqhpsError(f"no {pattern} in {folder}; the folder is not a whole MakeHuman asset")
    return found[0]


def _texture_path(folder: Path) -> Path:
    for pattern in ("*_diffuse.png", "materials/*_texture.png"):
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise VqhpsError(f"no *_diffuse.png in {folder}; the folder is not a whole MakeHuman asset")


def _read_mhclo(path: Path, count: int) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Rows (3 vertices, 3 weights, 3 offsets), hidden base vertices, and (pairs, lengths) of the three scales."""
    rows: list[list[float]] = []
    hides = np.zeros(count, bool)
    pairs, lengths, section = np.zeros((3, 2), int), np.ones(3, np.float32), ""
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0] in _AXES:
            pairs[_AXES[words[0]]], lengths[_AXES[words[0]]] = [int(w) for w in words[1:3]], float(words[3])
        if words[0][0].isalpha():
            section = words[0] if words[0] in ("verts", "delete_verts") else section
        elif section == "verts":
            row = [float(w) for w in words]
            rows.append(row if len(row) == 9 else [row[0]] * 3 + [1, 0, 0] + [0, 0, 0])
        elif section == "delete_verts":
            _mark_ranges(words, hides)
    return np.array(rows), hides, (pairs, lengths)


def _mark_ranges(words: list[str], mask: Bool[np.ndarray, "V"]) -> None:
    """Set the vertices of `12 15 - 20 31` in the mask."""
    at = 0
    while at < len(words):
        last = at + 2 if words[at + 1 : at + 2] == ["-"] else at
        mask[int(words[at]) : int(words[last]) + 1] = True
        at = last + 1


def _read_obj(path: Path) -> tuple[int, Int[np.ndarray, "F 3"], Float[np.ndarray, "F 3 2"]]:
    """Vertex count, triangles, and texture coordinates of their corners (v down)."""
    count, uv, faces = 0, [[0.0, 0.0]], []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if line.startswith("v "):
            count += 1
        elif line.startswith("vt "):
            uv.append([float(words[1]), 1 - float(words[2])])
        elif line.startswith("f "):
            corners = [[int(x or 0) for x in (w.split("/") + ["0"])[:2]] for w in words[1:]]
            faces += [[corners[0], corners[i], corners[i + 1]] for i in range(1, len(corners) - 1)]
    table = np.array(faces)
    return count, table[..., 0] - 1, np.array(uv, np.float32)[table[..., 1]]


def _pieces(name: str, faces: Int[np.ndarray, "F 3"], base: Int[np.ndarray, "V 3"]) -> Int[np.ndarray, "F"]:
    """0 for faces of pieces worn on the upper body, 1 for trousers, skirts and socks: each piece as a whole."""
    if "suit" not in name:
        return np.zeros(len(faces), np.int8)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = scipy.sparse.coo_matrix((np.ones(len(edges)), edges.T), shape=(len(base),) * 2)
    _, label = scipy.sparse.csgraph.connected_components(graph, directed=False)
    height = anny_body("base").template[base[:, 0], 1]
    total = np.bincount(label)
    mean = np.bincount(label, height) / np.maximum(total, 1)
    waist = anny_body("base").rest_joints[6, 1]
    return (mean[label[faces[:, 0]]] < waist).astype(np.int8)


def _read_skin(folder: Path) -> Int[np.ndarray, "H W 3"]:
    material = _only(folder, f"{folder.name}.mhmat")
    for line in material.read_text(encoding="utf-8").splitlines():
        if line.startswith("diffuseTexture"):
            path = (folder / line.split()[1]).resolve()
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is not None:
                return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
            raise VqhpsError(f"cannot read {path}, the texture that {material} names")
    raise VqhpsError(f"{material} names no diffuseTexture")


def _eye_texture(size: int = 64) -> Int[np.ndarray, "E E 3"]:
    """A front view of an eyeball: white, brown iris, pupil."""
    grid = (np.arange(size) + 0.5) / size * 2 - 1
    radius = np.hypot(*np.meshgrid(grid, grid))[..., None]
    image = np.where(radius < 0.5, np.array([88, 62, 45], np.float32), np.array([225, 218, 212], np.float32))
    return np.where(radius < 0.2, np.array([12, 10, 10], np.float32), image).astype(np.uint8)


def rest_bodies(shapes: Float[np.ndarray, "P S"]) -> tuple[Float[np.ndarray, "P Vb 3"], Float[np.ndarray, "P K 3"]]:
    """Base meshes with helpers and bone heads in the rest pose, metres in body axes."""
    vertices, heads = anny_body("base").rest(torch.from_numpy(shapes))
    return vertices.numpy(), heads.numpy()
