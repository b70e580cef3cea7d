"""Ray casting with embree: camera rays, textures, image-based light, one sun with shadows, anti-aliased outlines.

Everything is in the camera's axes (x right, y down, z forward), metres, camera at the origin.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Bool, Float, Int

from vqhps.data.synthetic import material as mt
from vqhps.data.synthetic.character import Mesh
from vqhps.data.synthetic.light import Panorama, harmonics, look_up

_ALPHA_LAYERS = 5
_STEP = 2e-4  # relative distance by which a ray leaves a surface
_SUBPIXELS = np.array([[0.375, -0.125], [-0.375, 0.125], [0.125, 0.375], [-0.125, -0.375]], np.float32)


@dataclasses.dataclass(frozen=True)
class Lighting:
    """How a scene is lit and shown.

    Attributes:
        panorama: environment.
        to_panorama: (3,3) camera axes -> panorama axes.
        exposure: albedo 1 under mean light has this linear value.
        zoom: the background's field of view over the camera's, around `centre`.
        centre: (3,) ray of the crop's centre, z = 1.
        gain: (3,) white balance and brightness of the whole image, on linear light.
    """

    panorama: Panorama
    to_panorama: Float[np.ndarray, "3 3"]
    exposure: float
    zoom: float
    centre: Float[np.ndarray, "3"]
    gain: Float[np.ndarray, "3"]


class Hits(NamedTuple):
    """First opaque surfaces along rays: triangle (-1: none), barycentric u, v, and distance over the ray's length."""

    face: Int[np.ndarray, "N"]
    u: Float[np.ndarray, "N"]
    v: Float[np.ndarray, "N"]
    distance: Float[np.ndarray, "N"]


class Renderer:
    """A scene to cast rays into.

    Args:
        meshes: in camera axes; merged into one.
        view: (4,) least and greatest x/z, y/z that will be looked at; what lies well outside is left out.
    """

    def __init__(self, meshes: list[Mesh], view: Float[np.ndarray, "4"]) -> None:
        counts = np.cumsum([0] + [len(m.vertices) for m in meshes])
        kinds = np.cumsum([0] + [len(m.materials) for m in meshes])
        self.vertices = np.concatenate([m.vertices for m in meshes])
        self.normals = np.concatenate([m.normals for m in meshes])
        self.rest = np.concatenate([m.rest for m in meshes])
        kept = [np.flatnonzero(_worth_keeping(m, view)) for m in meshes]
        self.faces = np.concatenate([m.faces[i] + c for m, i, c in zip(meshes, kept, counts[:-1], strict=True)])
        self.face_uv = np.concatenate([m.face_uv[i] for m, i in zip(meshes, kept, strict=True)])
        groups = zip(meshes, kept, kinds[:-1], strict=True)
        self.face_material = np.concatenate([m.face_material[i] + k for m, i, k in groups])
        self.materials = [material for m in meshes for material in m.materials]
        self._translucent = np.array([m.translucent for m in self.materials])[self.face_material]
        self._scene = EmbreeScene()
        used = np.zeros(len(self.vertices), bool)
        used[self.faces] = True
        compact = (np.cumsum(used) - 1).astype(np.int32)[self.faces]
        TriangleMesh(self._scene, self.vertices[used], compact)

    def cast(self, rays: Float[np.ndarray, "N 3"], threshold: float = 0.5) -> Hits:
        """First hits of rays from the camera; holes of translucent textures are passed through."""
        found = self._scene.run(np.zeros_like(rays), rays, output=True)
        hits = Hits(found["primID"].copy(), found["u"].copy(), found["v"].copy(), found["tfar"].copy())
        todo = np.flatnonzero((hits.face >= 0) & self._translucent[hits.face])
        for _ in range(_ALPHA_LAYERS):
            todo = todo[~self._opaque(hits, todo, threshold)]
            if not len(todo):
                return hits
            start = hits.distance[todo] * (1 + _STEP) + _STEP
            found = self._scene.run(rays[todo] * start[:, None], rays[todo], output=True)
            hits.face[todo], hits.u[todo], hits.v[todo] = found["primID"], found["u"], found["v"]
            hits.distance[todo] = found["tfar"] + start
            todo = todo[(hits.face[todo] >= 0) & self._translucent[hits.face[todo]]]
        hits.face[todo] = -1
        return hits

    def _opaque(self, hits: Hits, index: Int[np.ndarray, "M"], threshold: float) -> Bool[np.ndarray, "M"]:
        uv, kind = self._uv(hits, index), self.face_material[hits.face[index]]
        solid = np.ones(len(index), bool)
        for k in np.unique(kind):
            mine = kind == k
            solid[mine] = mt.opaque(self.materials[k], uv[mine], threshold)
        return solid

    def _uv(self, hits: Hits, index: Int[np.ndarray, "M"]) -> Float[np.ndarray, "M 2"]:
        return _blend(self.face_uv[hits.face[index]], hits.u[index], hits.v[index])

    def occluded(self, points: Float[np.ndarray, "N 3"], direction: Float[np.ndarray, "N 3"]) -> Bool[np.ndarray, "N"]:
        """Whether anything lies in a direction from points."""
        return self._scene.run(points, direction, query="OCCLUDED") != -1

    def shade(
        self, rays: Float[np.ndarray, "N 3"], hits: Hits, lighting: Lighting, behind: Float[np.ndarray, "N 3"] | None
    ) -> Float[np.ndarray, "N 3"]:
        """sRGB in [0,1] of rays: surfaces where they hit, `behind` or else the panorama elsewhere."""
        colour = np.empty((len(rays), 3), np.float32)
        missed = hits.face < 0
        colour[missed] = background(rays[missed], lighting) if behind is None else behind[missed]
        at = np.flatnonzero(~missed)
        if not len(at):
            return colour
        face, u, v = hits.face[at], hits.u[at], hits.v[at]
        corners = self.faces[face]
        normal = _unit(_blend(self.normals[corners], u, v))
        view = _unit(rays[at])
        normal = np.where(np.einsum("ni,ni->n", normal, view)[:, None] > 0, -normal, normal)
        point = rays[at] * hits.distance[at, None]
        albedo, gloss = self._surface(face, self._uv(hits, at), _blend(self.rest[corners], u, v))
        light, shine = self._light(point, normal, view, lighting)
        linear = (albedo * light + gloss[:, None] * shine) * (lighting.exposure * lighting.gain)
        colour[at] = tone_map(linear)
        return colour

    def _surface(
        self, face: Int[np.ndarray, "N"], uv: Float[np.ndarray, "N 2"], rest: Float[np.ndarray, "N 3"]
    ) -> tuple[Float[np.ndarray, "N 3"], Float[np.ndarray, "N"]]:
        """Linear albedo and gloss."""
        kind = self.face_material[face]
        albedo = np.empty((len(face), 3), np.float32)
        for k in np.unique(kind):
            mine = kind == k
            albedo[mine] = mt.surface_colour(self.materials[k], uv[mine], rest[mine])
        return albedo, np.array([m.gloss for m in self.materials], np.float32)[kind]

    def _light(
        self,
        point: Float[np.ndarray, "N 3"],
        normal: Float[np.ndarray, "N 3"],
        view: Float[np.ndarray, "N 3"],
        lighting: Lighting,
    ) -> tuple[Float[np.ndarray, "N 3"], Float[np.ndarray, "N 3"]]:
        """Diffuse light (irradiance over pi) and mirrored light."""
        turn, panorama = lighting.to_panorama.astype(np.float32), lighting.panorama
        light = (harmonics(normal @ turn.T) @ panorama.harmonics).clip(0.02)
        light *= self._openness(point, normal)[:, None]
        mirror = view - 2 * np.einsum("ni,ni->n", normal, view)[:, None] * normal
        shine = (harmonics(mirror @ turn.T) @ panorama.harmonics).clip(0.02)
        if panorama.sun.max() > 0.02:
            sun = panorama.sun_direction @ turn
            facing = (normal @ sun).clip(0)
            lit = np.flatnonzero(facing > 0)
            blocked = self.occluded(point[lit] + 0.006 * normal[lit], np.tile(sun, (len(lit), 1)).astype(np.float32))
            facing[lit[blocked]] = 0
            light += facing[:, None] * panorama.sun
            shine += ((mirror @ sun).clip(0) ** 24 * (facing > 0))[:, None] * panorama.sun * 4
        return light, shine

    def _openness(self, point: Float[np.ndarray, "N 3"], normal: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N"]:
        """A cheap stand-in for ambient occlusion: creases are found by one ray along the normal."""
        distance = self._scene.run(point + 0.004 * normal, np.ascontiguousarray(normal), query="DISTANCE")
        return 1 - 0.6 * np.exp(-np.minimum(distance, 10) / 0.12)


def _worth_keeping(mesh: Mesh, view: Float[np.ndarray, "4"]) -> Bool[np.ndarray, "F"]:
    """Faces that are not well outside of the view, nor on the far side of a closed surface."""
    depth = np.maximum(mesh.vertices[:, 2], 1e-3)
    x, y = mesh.vertices[:, 0] / depth, mesh.vertices[:, 1] / depth
    side = np.float32(0.15 * max(view[2] - view[0], view[3] - view[1]))
    outside = np.packbits([x < view[0] - side, x > view[2] + side, y < view[1] - side, y > view[3] + side], axis=0)[0]
    a, b, c = mesh.faces.T
    keep = (outside[a] & outside[b] & outside[c]) == 0
    if mesh.one_sided is not None:
        away = np.einsum("vi,vi->v", mesh.normals, mesh.vertices) > 0.1 * depth
        keep &= ~(away[a] & away[b] & away[c] & mesh.one_sided)
    return keep


def render(
    scene: Renderer,
    rays: Float[np.ndarray, "H W 3"],
    near: Bool[np.ndarray, "H W"],
    lighting: Lighting,
    behind: Float[np.ndarray, "H W 3"] | None = None,
) -> tuple[Int[np.ndarray, "H W 3"], Int[np.ndarray, "H W"]]:
    """Render an image.

    Args:
        scene: what to see.
        rays: direction of each pixel's centre, z = 1.
        near: pixels that meshes may cover; the others show the background.
        lighting: light and exposure.
        behind: the background, sRGB in [0,1], where it is known; the panorama by default.

    Returns:
        sRGB image, and the triangle seen in each pixel, -1 for none.
    """
    at = np.flatnonzero(near)
    flat = rays.reshape(-1, 3)
    far = None if behind is None else behind.reshape(-1, 3)
    hits = scene.cast(flat[at])
    seen = np.full(near.size, -1, np.int64)
    seen[at] = hits.face
    image = np.empty((near.size, 3), np.float32)
    image[at] = scene.shade(flat[at], hits, lighting, None if far is None else far[at])
    rest = np.flatnonzero(~near)
    image[rest] = background(flat[rest], lighting) if far is None else far[rest]
    edge = np.flatnonzero(_outline(scene, seen.reshape(near.shape)))
    step = np.stack([rays[0, 1] - rays[0, 0], rays[1, 0] - rays[0, 0]])
    more = (flat[edge][:, None] + (_SUBPIXELS @ step)[None]).reshape(-1, 3)
    around = None if far is None else np.repeat(far[edge], len(_SUBPIXELS), 0)
    fine = scene.shade(more, scene.cast(more), lighting, around).reshape(-1, len(_SUBPIXELS), 3)
    image[edge] = fine.mean(1)
    return eight_bits(image).reshape(rays.shape), seen.reshape(near.shape)


def eight_bits(image: Float[np.ndarray, "*N 3"]) -> Int[np.ndarray, "*N 3"]:
    """Colours in [0,1] as bytes."""
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def _outline(scene: Renderer, seen: Int[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Pixels where the material changes to a neighbour's."""
    kind = np.where(seen >= 0, scene.face_material[seen], -1)
    edge = np.zeros(kind.shape, bool)
    down, right = kind[1:] != kind[:-1], kind[:, 1:] != kind[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def background(rays: Float[np.ndarray, "N 3"], lighting: Lighting) -> Float[np.ndarray, "N 3"]:
    """sRGB in [0,1] of the panorama along rays."""
    wide = (rays - lighting.centre) * np.float32(lighting.zoom) + lighting.centre
    pixels = look_up(lighting.panorama.image, wide @ lighting.to_panorama.T.astype(np.float32))
    return pixels.astype(np.float32) / 255 * (lighting.gain ** (1 / 2.2)).astype(np.float32)


def tone_map(linear: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    """Linear light to sRGB in [0,1], with a soft shoulder."""
    return ((1 - np.exp(-1.25 * linear)) / np.float32(1 - np.exp(-1.25))).clip(0, 1) ** np.float32(1 / 2.2)


def _blend(corners: Float[np.ndarray, "N 3 C"], u: Float[np.ndarray, "N"], v: Float[np.ndarray, "N"]) -> np.ndarray:
    w = (1 - u - v)[:, None]
    return corners[:, 0] * w + corners[:, 1] * u[:, None] + corners[:, 2] * v[:, None]


def _unit(x: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N 3"]:
    return x / (np.sqrt(np.einsum("ni,ni->n", x, x))[:, None] + np.float32(1e-12))
