"""A stylised portrait as a function of one pixel, for `ida_jax.data.rendered`.

Everything is written with scalars, one channel of one pixel of one image; `render` maps it over
columns, rows, channels and images, which XLA fuses into a few loops. A portrait is painted from
back to front: a layer takes the colour so far and gives the colour with itself on top.

B images, S = height = width. Lengths are in half image sides, x to the right and y down from the
middle of the head. p, s and c are `rendered.Person`, `rendered.Shot` and `rendered.Palette`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


class Point(NamedTuple):
    """Where a pixel lies, in the image and on the head, and the light there."""

    x0: Array  # position in the image
    y0: Array
    x: Array  # position in the head's upright frame
    y: Array
    soft: Array  # half the width of an edge's ramp: a pixel's size and the blur
    across: Array  # x over the head's half width at this height
    down: Array  # |y| over the height of the crown or of the chin
    below: Array  # 1 below the head's middle, 0 above
    normal: tuple[Array, Array, Array]  # of the smooth head
    head: Array  # about the signed distance to the head's outline
    u: Array  # position on the head's surface, seen from its front
    v: Array
    lean: Array  # how far a turn moves the tip of the nose aside
    nose: Array  # height of the nose's tip
    mouth: Array  # height of the mouth
    gap: Array  # how far the mouth is open
    light: Array | float = 1.0  # brightness, 0 to about 1.1
    shine: Array | float = 0.0  # highlight, 0 to 1


def _smooth(low: Array | float, high: Array | float, x: Array) -> Array:
    t = jnp.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _inside(distance: Array, soft: Array | float) -> Array:
    return _smooth(soft, -soft, distance)


def _bell(*offsets: Array) -> Array:
    return jnp.exp(-sum(offset * offset for offset in offsets))


def _mix(under: Array, over: Array | float, alpha: Array) -> Array:
    return under + alpha * (over - under)


def _ellipse(x: Array, y: Array, a: Array | float, b: Array | float) -> Array:
    """About the signed distance to an ellipse with half axes a and b."""
    x, y = x / a, y / b
    k = jnp.sqrt(x * x + y * y)
    return k * (k - 1.0) / (jnp.sqrt((x / a) ** 2 + (y / b) ** 2) + 1e-6)


def _wave(x: Array) -> Array:
    """Two parabolas a period that pass for sin x: the true sine costs fifteen times as much."""
    turn = x * (0.5 / np.pi)
    turn = turn - jnp.round(turn)
    return 8.0 * turn * (1.0 - 2.0 * jnp.abs(turn))


def _power(x: Array, exponent: Array) -> Array:
    # exp and log are vectorised on a CPU, pow is not.
    return jnp.exp(exponent * jnp.log(x + 1e-9))


def _hash(x: Array, y: Array, salt: Array) -> Array:
    """A number in [0, 1) for whole x, y and salt: the output permutation of PCG-RXS-M-XS."""
    x, y, salt = (n.astype(jnp.int32).astype(jnp.uint32) for n in (x, y, salt))
    state = (x * np.uint32(1664525) + y * np.uint32(1013904223) + salt) * np.uint32(747796405)
    word = ((state >> ((state >> np.uint32(28)) + np.uint32(4))) ^ state) * np.uint32(277803737)
    return ((word ^ (word >> np.uint32(22))) >> np.uint32(8)).astype(jnp.float32) * 2.0**-24


def _locate(x0: Array, y0: Array, size: int, p: NamedTuple, s: NamedTuple) -> Point:
    """The point of the head under a pixel.

    The head is round in every horizontal section, so a turn by the yaw moves a point along its
    section and leaves the outline, but for the chin, which leans to the side it faces.
    """
    cos, sin = jnp.cos(s.roll) / s.scale, jnp.sin(s.roll) / s.scale
    x, y = x0 - s.shift_x, y0 - s.shift_y
    x, y = cos * x + sin * y, cos * y - sin * x
    gap = jnp.maximum(s.mouth_open, 0.0)
    below = y > 0.0
    down = jnp.abs(y) / jnp.where(below, p.chin + 0.5 * gap, p.crown)
    height = _power(down, jnp.where(below, p.jaw, 2.5))
    turn, ahead = jnp.sin(s.yaw), jnp.cos(s.yaw)
    width = p.face_width * jnp.where(below, 1.0 - p.taper * down * down, 1.0)
    width = width + p.cheekbone * _bell((y - 0.12) / 0.16)
    across = (x - jnp.where(below, 0.2 * turn * down * down, 0.0)) / width
    radius = across * across + height
    nz = jnp.sqrt(jnp.maximum(1.0 - radius, 1e-4))
    normal = across, 0.75 * jnp.sign(y) * jnp.sqrt(height), nz
    soft, head = 1.2 / size + jnp.maximum(s.blur, 0.0), 0.52 * (jnp.sqrt(radius) - 1.0)
    u, v = width * (across * ahead - nz * turn), y + s.pitch * width * nz
    lean, nose = 0.75 * p.nose_bulge * turn, p.eye_height + p.nose_length
    mouth = nose + p.mouth_gap + 0.3 * gap
    place = x0, y0, x, y, soft, across, down, below.astype(jnp.float32), normal, head, u, v
    return Point(*place, lean=lean, nose=nose, mouth=mouth, gap=gap)


def _relief(u: Array, v: Array, at: Point, p: NamedTuple) -> Array:
    """Height of the face's surface over the smooth head."""
    a = jnp.abs(u)
    ramp = jnp.clip((v - p.eye_height + 0.04) / (p.nose_length + 0.04), 0.0, 1.1)
    ridge = _bell((u - at.lean * ramp) / (p.nose_width * (0.4 + 0.35 * ramp)))
    ridge = ridge * p.nose_bulge * (0.2 + 0.5 * ramp * ramp)
    ridge = ridge * _smooth(-0.16, 0.04, v - p.eye_height) * _smooth(0.05, -0.02, v - at.nose)
    beside = jnp.abs(u - at.lean) - 0.72 * p.nose_width
    wings = 0.05 * _bell(beside / (0.4 * p.nose_width), (v - at.nose + 0.015) / 0.035)
    socket = _bell((a - 0.85 * p.eye_spacing) / 0.12, (v - p.eye_height + 0.02) / 0.075)
    brow = 0.02 * _bell((a - p.eye_spacing) / 0.16, (v - p.eye_height + p.brow_gap) / 0.05)
    cheek = _bell((a - 0.62 * p.face_width) / 0.13, (v - at.nose + 0.06) / 0.12)
    lips = 0.03 * _bell(u / p.mouth_width, (v - at.mouth) / 0.07)
    chin = 0.035 * _bell(u / 0.13, (v - p.chin + 0.1 - at.gap) / 0.08)
    along = a - p.nose_width - 0.03 - 0.5 * (v - at.nose)
    fold = _bell(along / 0.035, (v - at.mouth + 0.06) / 0.11)
    hollow = 0.045 * socket + 0.022 * jnp.maximum(p.age, 0.0) * fold
    return ridge + wings + brow + (0.02 + 0.6 * p.cheekbone) * cheek + lips + chin - hollow


def _lit(at: Point, p: NamedTuple, s: NamedTuple) -> Point:
    """The point with the light that falls on it: Lambert's law on the relief's normal."""
    slope_u, slope_v = jax.grad(_relief, argnums=(0, 1))(at.u, at.v, at, p)
    nx, ny, nz = at.normal[0] - 1.1 * slope_u, at.normal[1] - 1.1 * slope_v, at.normal[2]
    lengths = (nx * nx + ny * ny + nz * nz) * (s.light_x**2 + s.light_y**2 + 0.85**2)
    facing = (nx * s.light_x + ny * s.light_y + 0.85 * nz) * jax.lax.rsqrt(lengths)
    light = jnp.maximum(1.0 - s.strength * (0.7 - 0.8 * facing), 0.0)
    return at._replace(light=light, shine=jnp.maximum(facing, 0.0) ** 16)


def _tress(at: Point, p: NamedTuple, c: NamedTuple) -> Array:
    """Colour of the hair: strands that run from the crown, or curls."""
    along = at.across * jax.lax.rsqrt(jnp.maximum(1.0 - 0.9 * at.down**2, 0.3))
    fine = 0.4 * _smooth(0.05, 0.01, at.soft) * _wave(37.0 * along + 3.0 * _wave(5.0 * at.y))
    strands = 0.6 * _wave(17.0 * along + p.phase) + fine
    bend = 2.0 * _wave(9.0 * at.y + p.phase), 2.0 * _wave(9.0 * at.x)
    curls = _wave(17.0 * at.x + bend[0]) * _wave(15.0 * at.y + bend[1])
    return c.hair * (1.0 + 0.2 * _mix(strands, 1.3 * curls, p.curl))


def _setting(at: Point, tress: Array, p: NamedTuple, s: NamedTuple, c: NamedTuple) -> Array:
    """Background, clothes, the hair behind the head, the neck."""
    colour = _mix(c.back, c.back_far, _smooth(-1.2, 1.2, at.y0 + s.slope * at.x0))
    disc = _ellipse(at.x0 - s.disc_x, at.y0 + 0.5, s.disc_size, s.disc_size)
    colour = colour + 0.09 * _inside(disc, 0.03)
    shoulder = 0.8 + 0.45 * at.x**2 - at.y
    fall = 1.0 - 0.5 * _smooth(0.0, 1.2, jnp.abs(at.x - 0.3 * s.light_x))
    colour = _mix(colour, c.cloth * fall, _inside(shoulder, at.soft))
    sway = 0.03 * p.curl * _wave(15.0 * at.y + p.phase) + 0.08 * _smooth(-0.3, 0.8, at.y)
    wide = p.back_width * (1.2 * _smooth(-0.8, 0.1, at.y) - 0.2) + sway
    behind = jnp.maximum(jnp.abs(at.x) - wide, at.y - p.back_end - 0.1 * at.x**2)
    colour = _mix(colour, 0.62 * tress, _inside(behind, at.soft + 0.02) * p.cover)
    nape = p.neck * (1.0 + 0.4 * _smooth(0.65, 0.95, at.y))
    throat = jnp.maximum(jnp.abs(at.x) - nape, at.y - 0.93 + 0.9 * at.x**2)
    shade = 0.48 + 0.3 * _smooth(p.chin - 0.02, p.chin + 0.25, at.y) + 0.2 * s.light_x * at.x
    return _mix(colour, c.skin * shade, _inside(throat, at.soft) * at.below)


def _skin(at: Point, p: NamedTuple, c: NamedTuple) -> Array:
    """Skin with its flush, freckles, a mole, shadows and nostrils."""
    a, beside = jnp.abs(at.u), at.u - at.lean
    flush = 0.35 * _bell((a - 0.6 * p.face_width) / 0.12, (at.v - at.nose) / 0.1)
    flush = flush + 0.3 * _bell(beside / p.nose_width, (at.v - at.nose) / 0.05)
    skin = _mix(c.skin, c.flush, flush)
    cell_u, cell_v, seed = jnp.floor(22.0 * at.u), jnp.floor(22.0 * at.v), jnp.floor(1e4 * p.phase)
    chance, aside = _hash(cell_u, cell_v, seed), _hash(cell_v, cell_u, seed)
    du, dv = 22.0 * at.u - cell_u - 0.3 - 0.4 * aside, 22.0 * at.v - cell_v - 0.3 - 0.4 * chance
    dot = _smooth(0.28, 0.05, jnp.sqrt(du * du + dv * dv))
    dotted = jnp.where(chance < 0.55 * p.freckles, dot, 0.0)
    skin = skin * (1.0 - 0.4 * dotted * _bell(at.u / 0.36, (at.v - at.nose + 0.08) / 0.13))
    mole = jnp.sqrt((at.u - p.mole_x) ** 2 + (at.v - p.mole_y) ** 2) - p.mole_size
    skin = skin * (1.0 - 0.75 * _inside(mole, at.soft) * _smooth(0.0, 0.01, p.mole_size))
    rim = _bell((at.normal[2] - 0.05) / 0.3)
    skin = _mix(0.55 * _mix(skin, c.flush, 0.5), 1.04 * skin, at.light - 0.3 * rim)
    out = a - p.eye_spacing
    bag = _bell((at.v - p.eye_height - 0.075 - 0.06 * out) / 0.014, out / 0.07)
    skin = (skin + 0.12 * at.shine) * (1.0 - 0.2 * jnp.maximum(p.age, 0.0) * bag)
    under = _bell(beside / (1.1 * p.nose_width), (at.v - at.nose - 0.05) / 0.025)
    across = (jnp.abs(beside) - 0.5 * p.nose_width) / (1.0 + 10.0 * p.nose_width)
    hole = _inside(_ellipse(across, at.v - at.nose - 0.02, 0.014, 0.014), at.soft)
    return skin * (1.0 - 0.22 * under) * (1.0 - 0.62 * hole)


def _beard(at: Point, p: NamedTuple, c: NamedTuple) -> tuple[Array, Array]:
    """Colour and cover of the beard on the face."""
    a = jnp.abs(at.u)
    arch = jnp.abs(at.v - _mix(at.nose, at.mouth, 0.62) - 0.9 * a * a) - 0.04 + 0.1 * a
    tash = _inside(jnp.maximum(arch, a - 1.15 * p.mouth_width), at.soft + 0.015)
    tuft = _inside(_ellipse(at.u, at.v - p.chin + 0.02, 0.19, 0.2), at.soft + 0.03)
    whiskers = _smooth(0.09, 0.18, at.v - 0.55 * jnp.maximum(p.face_width - a - 0.03, 0.0))
    bare = _inside(_ellipse(at.u, at.v - at.mouth, 0.8 * p.mouth_width, 0.05), at.soft + 0.015)
    cover = jnp.maximum(p.goatee * tuft, p.whiskers * whiskers) * (1.0 - bare)
    grain = 1.0 + 0.1 * _wave(60.0 * at.u + 4.0 * _wave(14.0 * at.v + p.phase))
    return c.hair * grain * (0.45 + 0.45 * at.light), jnp.maximum(p.moustache * tash, cover)


def _mouth(face: Array, at: Point, p: NamedTuple, s: NamedTuple, c: NamedTuple) -> Array:
    mu = at.u / p.mouth_width
    bow = jnp.maximum(1.0 - mu * mu, 0.0)
    off = at.v - at.mouth + s.smile * (mu * mu - 0.35)
    half = 0.5 * at.gap * jnp.sqrt(bow)
    top = -p.upper_lip * bow * (1.0 - 0.35 * _bell(mu / 0.18)) - half
    bottom = p.lower_lip * jnp.sqrt(bow) + half
    ends = _inside((jnp.abs(mu) - 1.0) * p.mouth_width, at.soft)
    lip = _inside(jnp.maximum(top - off, off - bottom), at.soft) * ends
    gleam = _bell((off - 0.5 * bottom - 0.4 * half) / 0.016, mu / 0.5)
    bright = 0.72 + 0.3 * at.light - 0.22 * _smooth(0.0, -0.03, off) + 0.18 * gleam
    face = face * (1.0 - 0.2 * _bell((off - bottom - 0.025) / 0.022, mu / 0.6))
    face = _mix(face, c.lips * bright, 0.85 * lip)
    hole = _inside(jnp.abs(off) - half - 0.004, at.soft + 0.002) * ends
    teeth = _inside(off + 0.2 * half, at.soft) * _inside(0.02 - at.gap, 0.02)
    return _mix(face, _mix(0.32 * c.lips, 0.55 + 0.37 * at.light, teeth), 0.9 * hole)


def _eyes(face: Array, at: Point, p: NamedTuple, s: NamedTuple, c: NamedTuple) -> Array:
    """Eyes, lids, lashes and brows."""
    out = jnp.abs(at.u) - p.eye_spacing
    y = at.v - p.eye_height + p.eye_tilt * out
    arc = jnp.clip(1.0 - (out / p.eye_width) ** 2, 0.0, 1.0)
    lid = y + p.eye_open * (1.0 - jnp.maximum(s.squint, 0.0)) * arc
    open_ = jnp.maximum(jnp.maximum(-lid, y - 0.55 * p.eye_open * arc), jnp.abs(out) - p.eye_width)
    face = face * (1.0 - 0.3 * _bell((lid + 0.03) / 0.015) * _smooth(0.0, 0.5, arc))
    x = out * jnp.sign(at.u) - s.gaze
    ring = jnp.sqrt(x * x + (y + 0.004) ** 2)
    ball = (0.95 - 0.3 * _smooth(0.02, 0.0, lid)) * (0.68 + 0.32 * at.light)
    iris = (0.8 + 0.5 * _smooth(-0.03, 0.03, y)) * (1.0 - 0.5 * _smooth(0.7, 1.0, ring / p.iris))
    ball = _mix(ball, c.iris * iris, _inside(ring - p.iris, at.soft))
    ball = _mix(ball, 0.04, _inside(ring - 0.45 * p.iris, at.soft))
    ball = ball + 0.8 * _inside(_ellipse(x + 0.016, y + 0.018, 0.012, 0.012), at.soft)
    face = _mix(face, ball, _inside(open_, at.soft))
    thick = 0.007 + 0.011 * p.lash * (0.6 + 0.5 * out / p.eye_width) + 0.5 * at.soft
    lashes = _bell(lid / thick) * _inside(jnp.abs(out) - 1.08 * p.eye_width, at.soft)
    face = _mix(face, 0.1, 0.9 * lashes)
    bx = out / (1.35 * p.eye_width)
    by = at.v - p.eye_height + p.brow_gap + s.brow_lift + p.brow_arch * (0.6 - bx * bx)
    by = jnp.abs(by + p.brow_tilt * out) - p.brow_thick * (0.85 - 0.45 * bx)
    brow = _inside(jnp.maximum(by, (jnp.abs(bx) - 1.0) * p.eye_width), at.soft)
    return _mix(face, 0.6 * c.hair + 0.02, 0.88 * brow)


def _ears(at: Point, p: NamedTuple, s: NamedTuple, c: NamedTuple) -> tuple[Array, Array, Array]:
    """Colour and cover of the ears, and the part of the cover that is before the head."""
    x = jnp.abs(at.x) - p.face_width * jnp.cos(s.yaw) - p.ear_out
    y = at.y - p.eye_height - 0.07
    ear = _inside(_ellipse(x, y, 0.62 * p.ear, p.ear), at.soft)
    groove = _inside(_ellipse(x, y, 0.3 * p.ear, 0.6 * p.ear), at.soft + 0.02)
    shade = (0.6 + 0.3 * at.light) * (1.0 - 0.25 * groove)
    near = _smooth(0.02, 0.12, -jnp.sign(at.x) * jnp.sin(s.yaw))
    return _mix(c.skin, c.flush, 0.3) * shade, ear, ear * near


def _hair(colour: Array, tress: Array, at: Point, p: NamedTuple, s: NamedTuple) -> Array:
    un = at.u / p.face_width
    rough = 0.03 * p.curl * (_wave(19.0 * at.x + p.phase) + _wave(17.0 * at.y + 2.0 * p.phase))
    volume = _mix(p.side_volume, p.volume, _smooth(0.1, -0.6, at.y)) + rough
    line = p.hairline + p.line_shift + 0.12 * un * un + p.peak * _bell(un / 0.2) + 0.3 * p.part * un
    line = line + p.jag * _wave(16.0 * un + p.phase)
    line = _mix(line, jnp.maximum(p.side_end, line), _smooth(0.74, 0.94, jnp.abs(at.across)))
    under = at.v - line
    cap = _inside(jnp.maximum(at.head - volume, under), at.soft + 0.006)
    glow = _bell((at.y + 0.45 * p.crown + 0.2 * at.x * s.light_x) / 0.13)
    glow = glow * _smooth(0.9, 0.2, jnp.abs(at.across - 0.4 * s.light_x))
    bright = 0.62 + 0.35 * at.light + 0.3 * glow - 0.25 * _smooth(-0.05, 0.0, under)
    colour = colour * (1.0 - 0.3 * p.cover * _inside(jnp.maximum(under - 0.04, at.head), 0.06))
    bun = _inside(_ellipse(at.x, at.y + p.crown + 0.06, 0.2, 0.16), at.soft) * p.bun
    colour = _mix(colour, tress * (0.7 - 0.6 * (at.y + p.crown)), bun)
    return _mix(colour, tress * bright + 0.05 * glow, cap * p.cover)


def _coverings(colour: Array, at: Point, p: NamedTuple, s: NamedTuple, c: NamedTuple) -> Array:
    """Glasses, and what covers a part of the face on some images."""
    on_head = _inside(at.head, at.soft)
    out = jnp.abs(at.u - 0.05 * jnp.sin(s.yaw)) - p.eye_spacing
    y = at.v - p.eye_height - 0.01
    rim = _power(jnp.abs(out / p.lens_width), p.lens_corner)
    rim = rim + _power(jnp.abs(y / p.lens_height), p.lens_corner)
    rim = (_power(rim, 1.0 / p.lens_corner) - 1.0) * p.lens_height
    wire = jnp.minimum(jnp.abs(rim), jnp.maximum(jnp.abs(y + 0.03), -rim)) - 0.01
    lens = _inside(rim, at.soft)
    glare = _inside(jnp.abs(out * jnp.sign(at.u) + y + 0.03) - 0.02, 0.02)
    worn = jnp.maximum(p.glasses, s.shades) * on_head
    colour = _mix(colour, 1.0, worn * lens * (0.05 + 0.13 * glare))
    colour = _mix(colour, 0.06 + 0.12 * glare + 0.1 * c.frame, s.shades * lens * on_head * 0.97)
    colour = _mix(colour, c.frame, _inside(wire, at.soft) * worn)
    scarf = jnp.maximum(at.nose - 0.06 + 0.25 * at.u**2 - at.v, at.head - 0.02)
    knit = (0.55 + 0.45 * at.light) * (0.95 + 0.08 * _wave(50.0 * at.v))
    colour = _mix(colour, c.patch * knit, _inside(scarf, at.soft) * at.below * s.scarf)
    patch = _ellipse(at.x0 - s.patch_x, at.y0 - s.patch_y, s.patch_size, 1.3 * s.patch_size)
    fade = 1.0 - 0.35 * _smooth(-0.5, 0.5, at.y0 - s.patch_y + at.x0 - s.patch_x)
    return _mix(colour, c.patch * fade, _inside(patch, at.soft) * s.patch)


def _pixel(
    column: Array, row: Array, p: NamedTuple, s: NamedTuple, c: NamedTuple, salt: Array, size: int
) -> Array:
    """One channel of one pixel, in [0, 1]."""
    x0 = (column.astype(jnp.float32) + 0.5) * (2.0 / size) - 1.0
    y0 = (row.astype(jnp.float32) + 0.5) * (2.0 / size) - 1.0
    at = _lit(_locate(x0, y0, size, p, s), p, s)
    tress = _tress(at, p, c)
    colour = _setting(at, tress, p, s, c)
    whiskers, cover = _beard(at, p, c)
    face = _mix(_skin(at, p, c), whiskers, cover)
    face = _eyes(_mouth(face, at, p, s, c), at, p, s, c)
    lobe, ear, before = _ears(at, p, s, c)
    colour = _mix(_mix(colour, lobe, ear), face, _inside(at.head, at.soft) * (1.0 - before))
    hang = jnp.maximum(at.head - p.beard_length * _smooth(0.25, 0.8, at.down), -0.02 - at.head)
    hang = _inside(hang, at.soft + 0.01) * _smooth(0.2, 0.5, at.down) * p.whiskers
    colour = _mix(colour, whiskers, hang * at.below)
    colour = _coverings(_hair(colour, tress, at, p, s), at, p, s, c)
    colour = 0.45 + (colour * c.light * s.exposure - 0.45) * s.contrast
    noise = _hash(column, row, salt) + _hash(row, column, salt) - 1.0
    return jnp.clip(colour + jnp.maximum(s.noise, 0.0) * noise, 0.0, 1.0)


@functools.partial(jax.jit, static_argnames="size")
def render(p: NamedTuple, s: NamedTuple, c: NamedTuple, salt: Array, *, size: int) -> Array:
    """Draws B portraits, uint8 [B, 3, S, S].

    The channels stay before the pixels: a transposition here would put them into XLA's innermost
    loop, which then costs three times as much.

    Args:
      p: `rendered.Person` of float32 [B].
      s: `rendered.Shot` of float32 [B].
      c: `rendered.Palette` of float32 [B, 3].
      salt: uint32 [B, 3], the seeds of each channel's noise.
      size: S, height and width in pixels.
    """
    draw = functools.partial(_pixel, size=size)
    draw = jax.vmap(draw, in_axes=(0, None, None, None, None, None))  # columns
    draw = jax.vmap(draw, in_axes=(None, 0, None, None, None, None))  # rows
    draw = jax.vmap(draw, in_axes=(None, None, None, None, 0, 0))  # channels
    draw = jax.vmap(draw, in_axes=(None, None, 0, 0, 0, 0))  # images
    index = jnp.arange(size, dtype=jnp.int32)
    return jnp.round(255.0 * draw(index, index, p, s, c, salt)).astype(jnp.uint8)
