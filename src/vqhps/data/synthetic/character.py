"""Dressed people: outfits are drawn, fitted to a body's rest mesh, merged and posed."""

import dataclasses

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from vqhps.data.synthetic import material as mt
from vqhps.data.synthetic.wardrobe import GROUPS, Part, Wardrobe

_MISMATCH = 0.12  # rate of clothes and hair made for the other sex
_PAINTED = ("torso", "upper_arm", "forearm", "hips", "thigh", "shin", "foot")
_LONG_HAIR = ("bob", "braid", "long", "ponytail")


@dataclasses.dataclass(frozen=True)
class Outfit:
    """What a person wears: garment parts with the materials of their pieces, and the materials of the body's groups."""

    garments: tuple[Part, ...]
    materials: tuple[tuple[mt.Material, ...], ...]
    body: tuple[mt.Material, ...]
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Triangles with materials, ready to be placed in a scene.

    Attributes:
        vertices: (V,3) metres.
        normals: (V,3) unit.
        rest: (V,3) positions in the rest pose, metres.
        faces: (F,3).
        face_uv: (F,3,2).
        face_material: (F,) index into `materials`.
        materials: the surfaces.
        one_sided: (F,) faces never seen from inside; None: there are no such.
    """

    vertices: Float[np.ndarray, "V 3"]
    normals: Float[np.ndarray, "V 3"]
    rest: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    face_uv: Float[np.ndarray, "F 3 2"]
    face_material: Int[np.ndarray, "F"]
    materials: tuple[mt.Material, ...]
    one_sided: Bool[np.ndarray, "F"] | None = None

    def moved(self, rotation: Float[np.ndarray, "3 3"], translation: Float[np.ndarray, "3"]) -> "Mesh":
        """The same mesh at `rotation @ x + translation`."""
        turn = rotation.T.astype(np.float32)
        place = self.vertices @ turn + translation.astype(np.float32)
        return dataclasses.replace(self, vertices=place, normals=self.normals @ turn)


def draw_outfit(wardrobe: Wardrobe, gender: float, rng: np.random.Generator) -> Outfit:
    """Choose clothes, hair, shoes and skin.

    Args:
        wardrobe: the assets of a split.
        gender: Anny's phenotype: 0 male, 1 female.
        rng: source of all randomness.
    """
    female = gender > 0.5
    skin = _pick(rng, [n for n in wardrobe.skins if n.endswith("_female") == female] or list(wardrobe.skins))
    dressed = rng.random() < 0.68
    suits = _suited(list(wardrobe.suits), female, rng)
    chosen: list[Part] = [wardrobe.suits[_pick(rng, suits)]] if dressed else []
    if rng.random() < (0.85 if dressed else 0.4):
        chosen.append(wardrobe.shoes[_pick(rng, list(wardrobe.shoes))])
    covered = rng.random()
    if covered < 0.88:
        long = [n for n in wardrobe.hair if n.startswith(_LONG_HAIR) == (female != (rng.random() < _MISMATCH))]
        chosen.append(wardrobe.hair[_pick(rng, long or list(wardrobe.hair))])
    elif covered < 0.95 and wardrobe.hats:
        chosen.append(wardrobe.hats[_pick(rng, list(wardrobe.hats))])
    materials = tuple(_garment_materials(part, wardrobe, rng) for part in chosen)
    body = _body_materials(wardrobe, skin, dressed, rng)
    return Outfit(tuple(chosen), materials, body, (skin, *(part.name for part in chosen)))


def _pick(rng: np.random.Generator, names: list[str]) -> str:
    return names[rng.integers(len(names))]


def _suited(names: list[str], female: bool, rng: np.random.Generator) -> list[str]:
    wanted = "female_" if female != (rng.random() < _MISMATCH) else "male_"
    return [n for n in names if n.startswith(wanted)] or names


def _garment_materials(part: Part, wardrobe: Wardrobe, rng: np.random.Generator) -> tuple[mt.Material, ...]:
    luma = mt.mean_luma(part.texture)
    if part.name in wardrobe.hair:
        return (mt.hair_material(rng, part.texture, luma),)
    if part.name in wardrobe.suits:
        upper = mt.cloth(rng, part.texture, luma)
        return upper, upper if rng.random() < 0.2 else mt.cloth(rng, part.texture, luma)
    return (mt.cloth(rng, part.texture, luma),)


def _body_materials(wardrobe: Wardrobe, skin: str, dressed: bool, rng: np.random.Generator) -> tuple[mt.Material, ...]:
    """One material a body group; without a suit, tight clothes are painted on some groups."""
    bare = mt.skin_material(rng, wardrobe.skins[skin])
    chosen = dict.fromkeys(GROUPS, bare)
    eye = mt.Material(wardrobe.eye, mt.identity_colour(), gloss=0.5)
    chosen["eye"] = eye
    chosen["mouth"] = mt.Material(mt.flat_texture(), mt.repaint(np.array([0.6, 0.3, 0.3], np.float32), 1.0))
    if not dressed:
        top, bottom = (mt.cloth(rng, mt.flat_texture(), 1.0) for _ in range(2))
        sleeves, legs = rng.integers(3), rng.integers(1, 3)
        chosen["hips"] = bottom
        chosen |= dict.fromkeys(("thigh", "shin")[:legs], bottom)
        if rng.random() < 0.9:
            chosen |= dict.fromkeys(("torso", "upper_arm", "forearm")[: 1 + sleeves], top)
        if rng.random() < 0.5:
            chosen["foot"] = mt.cloth(rng, mt.flat_texture(), 1.0)
    return tuple(chosen[name] for name in GROUPS)


class Character:
    """A person: an outfit fitted to one body.

    Args:
        wardrobe: the assets.
        outfit: what to wear.
        base: (Vb,3) rest base mesh with helpers, metres in body axes.
        heads: (K,3) bone heads in the rest pose, metres.
    """

    def __init__(
        self,
        wardrobe: Wardrobe,
        outfit: Outfit,
        base: Float[np.ndarray, "Vb 3"],
        heads: Float[np.ndarray, "K 3"],
    ) -> None:
        self.heads, self.outfit = heads, outfit
        body = wardrobe.body
        self.parts = (body, *outfit.garments)
        self.rest = np.concatenate([base[wardrobe.body_vertices], *(g.fit(base) for g in outfit.garments)])
        self.weights = np.concatenate([part.weights for part in self.parts])
        hidden = np.zeros(len(base), bool)
        for garment in outfit.garments:
            hidden |= garment.hides
        covered = hidden[wardrobe.body_vertices][body.faces.T]
        self.shown = ~(covered[0] & covered[1] & covered[2])

    def posed(self, pose: Float[np.ndarray, "K 3 3"], parents: tuple[int, ...], coarse: bool = False) -> Mesh:
        """Linear blend skinning, root at the origin.

            Args:
        X: parent of each bone.

            Returns:
                The mesh in body axes, and its first `len(body_vertices)` vertices are the full body mesh.
        """
        turn, shift = bone_transforms(pose, self.heads, parents)
        flat = torch.from_numpy(np.concatenate([turn.reshape(-1, 9), shift], 1))
        blend = torch.mm(torch.from_numpy(self.weights), flat).numpy()
        vertices = np.einsum("vij,vj->vi", blend[:, :9].reshape(-1, 3, 3), self.rest) + blend[:, 9:]
        return self._assemble(vertices, coarse)

    def _assemble(self, vertices: Float[np.ndarray, "V 3"], coarse: bool) -> Mesh:
        faces, uvs, ids, sides, normals, first = [], [], [], [], [], 0
        materials: list[mt.Material] = []
        for i, part in enumerate(self.parts):
            points = vertices[first : first + len(part.weights)]
            normals.append(part.normal_sum @ face_normals(points, part.faces))
            table = part.coarse_faces if coarse else part.faces
            keep = part.coarse_from if coarse else np.arange(len(table))
            shown = self.shown[keep] if i == 0 else slice(None)
            keep = keep[shown]
            faces.append(table[shown] + first)
            uvs.append(part.face_uv[keep])
            sides.append(part.one_sided[keep])
            ids.append(part.face_group[keep].astype(np.int32) + len(materials))
            materials += self.outfit.body if i == 0 else self.outfit.materials[i - 1]
            first += len(part.weights)
        normal = np.concatenate(normals)
        normal /= np.sqrt(np.einsum("vi,vi->v", normal, normal))[:, None] + 1e-12
        return Mesh(
            vertices.astype(np.float32), normal.astype(np.float32), self.rest.astype(np.float32),
            np.concatenate(faces), np.concatenate(uvs), np.concatenate(ids), tuple(materials), np.concatenate(sides),
        )  # fmt: skip


def bone_transforms(
    pose: Float[np.ndarray, "K 3 3"], heads: Float[np.ndarray, "K 3"], parents: tuple[int, ...]
) -> tuple[Float[np.ndarray, "K 3 3"], Float[np.ndarray, "K 3"]]:
    """Rotation and translation of each bone from the rest pose, root at the origin; float32."""
    turn, place = np.empty((len(parents), 3, 3)), np.zeros((len(parents), 3))
    for k, parent in enumerate(parents):
        turn[k] = pose[k] if parent < 0 else turn[parent] @ pose[k]
        if parent >= 0:
            place[k] = place[parent] + turn[parent] @ (heads[k] - heads[parent])
    shift = place - np.einsum("kij,kj->ki", turn, heads)
    return turn.astype(np.float32), shift.astype(np.float32)


def face_normals(vertices: Float[np.ndarray, "V 3"], faces: Int[np.ndarray, "F 3"]) -> Float[np.ndarray, "F 3"]:
    """Normals of triangles, as long as twice their areas."""
    a, b, c = (np.take(vertices, faces[:, i], axis=0) for i in range(3))
    (x, y, z), (u, v, w) = (b - a).T, (c - a).T
    return np.stack([y * w - z * v, z * u - x * w, x * v - y * u], 1)
