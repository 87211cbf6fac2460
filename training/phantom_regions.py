"""Boxes of anatomical regions, under Chest ImaGenome's names."""

from __future__ import annotations

import numpy as np

from radvlm_edge.training.phantom_bones import clavicle_line
from radvlm_edge.training.phantom_pose import SIDES, Mask, Pose
from radvlm_edge.training.phantom_scene import Scene

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 as fractions of the film's width and height."""

REGIONS = (
    "right lung",
    "left lung",
    "cardiac silhouette",
    "mediastinum",
    "upper mediastinum",
    "spine",
    "trachea",
    "carina",
    "aortic arch",
    "abdomen",
    *(
        f"{side} {part}"
        for part in (
            "upper lung zone",
            "mid lung zone",
            "lower lung zone",
            "apical zone",
            "hilar structures",
            "costophrenic angle",
            "hemidiaphragm",
            "clavicle",
        )
        for side in ("right", "left")
    ),
)


def box_of(mask: Mask) -> Box | None:
    """Tightest box around a mask `[H, W]`; None for an empty one or a sliver of one pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) < 2 or len(columns) < 2:
        return None
    height, width = mask.shape
    return (
        float(columns[0] / width),
        float(rows[0] / height),
        float((columns[-1] + 1) / width),
        float((rows[-1] + 1) / height),
    )


def zone_of(scene: Scene, side: str, y: float) -> str:
    """`upper`, `mid` or `lower`: the third of a lung that a height belongs to."""
    lung = scene.anatomy.lungs[side]
    third = (lung.base + 0.3 * lung.dome - lung.apex) / 3
    return ("upper", "mid", "lower")[int(np.clip((y - lung.apex) // third, 0, 2))]


def region_masks(scene: Scene) -> dict[str, Mask]:
    """Coarse masks `[h, w]` of every region of which a mask is at hand."""
    anatomy, x, y = scene.anatomy, scene.x, scene.y
    out = x - np.float32(anatomy.shift)
    masks: dict[str, Mask] = {"cardiac silhouette": scene.heart > 0}
    narrow = np.abs(out - anatomy.midline(y) * 0.5) < anatomy.width + 0.02
    heart_top = anatomy.heart_y - anatomy.heart_height
    low = y < (anatomy.lungs["left"].base + 0.02)
    knob = np.abs(out - anatomy.width * 0.75) < 0.13 * anatomy.knob
    arch = knob & (np.abs(y + 0.46) < 0.15 * anatomy.knob)
    masks["mediastinum"] = (
        (narrow & (y > -1.0) & (y < heart_top + 0.1)) | masks["cardiac silhouette"] | arch
    ) & low
    masks["upper mediastinum"] = (narrow & (y > -1.0) & (y < -0.36)) | arch
    masks["aortic arch"] = arch
    masks["spine"] = np.abs(x - anatomy.midline(y)) < 0.10
    masks["trachea"] = (
        (np.abs(out - 0.02 + 0.4 * anatomy.shift * (y < -0.7)) < 0.055) & (y > -1.35) & (y < -0.36)
    )
    masks["carina"] = (np.abs(out - 0.02) < 0.10) & (np.abs(y + 0.34) < 0.07)
    floor = np.where(x < anatomy.shift, anatomy.lungs["right"].floor(x), anatomy.lungs["left"].floor(x))
    masks["abdomen"] = (y > floor) & (np.abs(x) < anatomy.wall)
    for side, sign in SIDES.items():
        lung, hull, outwards = anatomy.lungs[side], scene.hull[side] > 0.5, x * sign
        masks[f"{side} lung"] = hull
        top, third = lung.apex, (lung.base + 0.3 * lung.dome - lung.apex) / 3
        for index, zone in enumerate(("upper", "mid", "lower")):
            above = y >= top + index * third if index else y > -9
            below = y < top + (index + 1) * third if index < 2 else y < 9
            masks[f"{side} {zone} lung zone"] = hull & above & below
        masks[f"{side} apical zone"] = hull & (y < top + 0.32)
        centre = sign * (anatomy.width + 0.10)
        height = -0.12 if side == "right" else -0.17
        masks[f"{side} hilar structures"] = (np.abs(out - centre) < 0.13) & (np.abs(y - height) < 0.22)
        angle_x = lung.sign * lung.edge_at(lung.angle_y)
        masks[f"{side} costophrenic angle"] = (np.abs(outwards - angle_x + 0.07) < 0.12) & (
            np.abs(y - lung.angle_y + 0.06) < 0.12
        )
        inside = (outwards > 0.14) & (outwards < angle_x)
        masks[f"{side} hemidiaphragm"] = (np.abs(y - lung.floor(x) - 0.02) < 0.05) & inside
    return masks


def region_boxes(scene: Scene, masks: dict[str, Mask]) -> dict[str, Box]:
    """Boxes of the regions that lie on the film."""
    boxes = {name: box_of(mask) for name, mask in masks.items()}
    for side in SIDES:
        boxes[f"{side} clavicle"] = _around(clavicle_line(scene.anatomy, side), 0.035, scene.pose)
    named = {name: boxes[name] for name in REGIONS}
    return {name: box for name, box in named.items() if box is not None and _visible(box)}


def _around(line: np.ndarray, half: float, pose: Pose) -> Box | None:
    """Box of a line with some width, cut at the film's edges."""
    corners = np.concatenate([pose.pixels(line - half), pose.pixels(line + half)]) / [pose.width, pose.height]
    low, high = np.clip(corners.min(0), 0, 1), np.clip(corners.max(0), 0, 1)
    return None if (high <= low).any() else (float(low[0]), float(low[1]), float(high[0]), float(high[1]))


def _visible(box: Box) -> bool:
    return box[2] - box[0] >= 0.02 and box[3] - box[1] >= 0.02
