"""Pictures of a slot: the feeder by voltage, the roads by congestion, stations with storage, trades, the price curve.

matplotlib and Pillow are imported where they are used, so that environments start without them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np

from evcs_gym.envs.day import Day
from evcs_gym.envs.grid import Feeder
from evcs_gym.envs.market.core import MarketOutcome, MarketWorld
from evcs_gym.envs.market.responsive import Drivers
from evcs_gym.envs.scenario import Scenario
from evcs_gym.envs.types import FloatArray
from evcs_gym.envs.units import DAY_START_HOUR, MS_PER_S, SLOT_H

SIZE_INCHES: Final = (12.0, 6.75)
DPI: Final = 80
SHOWN_PU: Final = (0.93, 1.07)
"""Range of the voltage colours: a little beyond the usual limits."""
CONGESTED: Final = 1.0
"""Flow over capacity at which the colour of a road is at its end."""
LEAST_ARROW_KW: Final = 1.0
"""Trades below are not drawn."""
SELLER, BUYER, NEUTRAL = "#009e73", "#d55e00", "0.6"


@dataclass(frozen=True, eq=False)
class Scene:
    """What a picture shows. slot: the one that was played, or that begins where outcome is None. energy_kwh (S,) after
    it; price_eur_per_kwh: published so far on this day. drivers: what they did where they respond."""

    scenario: Scenario
    day: Day
    world: MarketWorld
    slot: int
    outcome: MarketOutcome | None
    energy_kwh: FloatArray
    price_eur_per_kwh: Sequence[float]
    drivers: Drivers | None = None


def draw_frame(scene: Scene) -> np.ndarray:
    """The picture, (540, 960, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    parts: Any = figure.subplot_mosaic([["feeder", "roads"], ["price", "storage"]], height_ratios=[3, 1.4])
    figure.suptitle(_title(scene))
    _draw_feeder(parts["feeder"], scene)
    _draw_roads(parts["roads"], scene)
    _draw_price(parts["price"], scene)
    _draw_storage(parts["storage"], scene)
    canvas.draw()
    return np.array(np.asarray(canvas.buffer_rgba())[..., :3])


def write_gif(frames: Sequence[np.ndarray], frames_per_s: float) -> bytes:
    """An animated GIF of the frames, played again and again."""
    from PIL import Image

    pictures = [Image.fromarray(frame).quantize(128) for frame in frames]
    file = BytesIO()
    pictures[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=MS_PER_S / frames_per_s,
        loop=0,
    )
    return file.getvalue()


def _title(scene: Scene) -> str:
    clock = (DAY_START_HOUR + SLOT_H * scene.slot) % 24.0
    hour, minute = int(clock), round(clock % 1.0 * 60.0)
    words = f"{scene.scenario.name}   {scene.day.date}   {hour:02d}:{minute:02d}"
    if scene.outcome is None:
        return words
    capped = int(np.isfinite(scene.outcome.cap_kw[0]).sum())
    volume, price = scene.outcome.volume_kw[0], scene.outcome.price_eur_per_kwh[0]
    words += f"   {volume:.0f} kW traded at {price:.3f} EUR/kWh" if volume >= LEAST_ARROW_KW else "   no trade"
    return words + (f"   {capped} stations capped" if capped else "")


def tree_positions(feeder: Feeder) -> FloatArray:
    """(N, 2) places of the buses: depth to the right, leaves below each other, others amid their children."""
    depth, place = np.zeros(len(feeder)), np.zeros(len(feeder))
    children: list[list[int]] = [[] for _ in range(len(feeder))]
    for bus in feeder.sweep_order[1:]:
        children[feeder.parent[bus]].append(int(bus))
        depth[bus] = depth[feeder.parent[bus]] + 1.0
    n_leaves, stack, order = 0, [0], []
    while stack:  # depth first, so that branches do not cross
        bus = stack.pop()
        order.append(bus)
        stack += children[bus]
        if not children[bus]:
            place[bus] = n_leaves
            n_leaves += 1
    for bus in reversed(order):
        if children[bus]:
            place[bus] = np.mean(place[children[bus]])
    return np.stack([depth, -place], axis=1)


def road_positions(scenario: Scenario) -> FloatArray:
    """(N, 2) places of the nodes, on a circle where the roads have none."""
    roads = scenario.roads
    if roads.node_xy_km is not None:
        return roads.node_xy_km
    angle = 2.0 * np.pi * np.arange(roads.n_nodes) / roads.n_nodes
    return np.stack([np.sin(angle), np.cos(angle)], axis=1)


def _draw_feeder(axes: Any, scene: Scene) -> None:
    from matplotlib.collections import LineCollection

    feeder, at = scene.world.feeder, tree_positions(scene.world.feeder)
    size = scene.day.base_voltage_pu[scene.slot] if scene.outcome is None else np.abs(scene.outcome.voltage_pu[0])
    present = np.where(feeder.phase_present, size, np.nan)
    away = np.nanmax(np.abs(present - 1.0), axis=1)
    sign = np.where(np.nanmax(present, axis=1) - 1.0 >= away - 1e-12, 1.0, -1.0)
    lines = np.stack([at[feeder.parent[1:]], at[1:]], axis=1)
    axes.add_collection(LineCollection(list(lines), colors="0.75", zorder=1))
    low, high = SHOWN_PU
    dots = axes.scatter(
        *at.T, c=1.0 + sign * away, cmap="coolwarm", vmin=low, vmax=high, s=40, zorder=2, edgecolors="0.3"
    )
    axes.figure.colorbar(dots, ax=axes, label="voltage of the phase farthest from 1 pu", fraction=0.04)
    _draw_stations(axes, scene, at[scene.world.stations.bus])
    axes.set_title("feeder and trades")
    axes.set_axis_off()


def _draw_roads(axes: Any, scene: Scene) -> None:
    from matplotlib.collections import LineCollection

    roads, at = scene.scenario.roads, road_positions(scene.scenario)
    begin, end = at[roads.tail], at[roads.head]
    aside = 0.03 * np.stack([end[:, 1] - begin[:, 1], begin[:, 0] - end[:, 0]], axis=1)  # each direction on its right
    lines = LineCollection(list(np.stack([begin + aside, end + aside], axis=1)), cmap="YlOrRd", linewidths=3.0)
    traffic = scene.day.traffic
    flow = np.zeros(roads.n_links) if traffic is None else traffic.link_flow_veh_per_h[scene.slot]
    if scene.drivers is not None:
        flow = scene.drivers.link_flow_veh_per_h[0]
    lines.set_array(flow / roads.capacity_veh_per_h)
    lines.set_clim(0.0, CONGESTED)
    axes.add_collection(lines)
    axes.figure.colorbar(lines, ax=axes, label="flow over capacity", fraction=0.04)
    axes.plot(*at.T, "o", color="0.3", markersize=4)
    _draw_stations(axes, scene, at[scene.world.stations.node], arrows=False)
    axes.set_title("roads")
    axes.set_aspect("equal")
    axes.set_axis_off()


def _draw_stations(axes: Any, scene: Scene, at: FloatArray, arrows: bool = True) -> None:
    """Squares: green sells, orange buys; arrows: who sold to whom, pro rata, as thick as the power."""
    position = np.zeros(len(at)) if scene.outcome is None else scene.outcome.position_kw[0]
    colours = np.where(position > LEAST_ARROW_KW, SELLER, np.where(position < -LEAST_ARROW_KW, BUYER, NEUTRAL))
    axes.scatter(*at.T, marker="s", s=110, c=list(colours), edgecolors="black", zorder=3)
    for number, place in enumerate(at):
        axes.annotate(str(number), place, ha="center", va="center", fontsize=7, color="white", zorder=4)
    if scene.outcome is None or not arrows:
        return
    for seller, buyer, power_kw in trades(scene.outcome.accepted_kw[0]):
        axes.annotate(
            "",
            xy=at[buyer],
            xytext=at[seller],
            zorder=5,
            arrowprops={
                "arrowstyle": "-|>",
                "color": "#7b3294",
                "alpha": 0.7,
                "lw": 0.5 + power_kw / 60.0,
                "connectionstyle": "arc3,rad=0.25",
                "shrinkA": 6,
                "shrinkB": 6,
            },
        )


def trades(accepted_kw: FloatArray) -> list[tuple[int, int, float]]:
    """(seller, buyer, power in kW): the auction knows no pairs, so every buyer takes of every seller pro rata."""
    sold, bought = np.maximum(accepted_kw, 0.0), np.maximum(-accepted_kw, 0.0)
    power = np.outer(sold, bought) / max(float(sold.sum()), LEAST_ARROW_KW)
    return [(int(s), int(b), float(power[s, b])) for s, b in np.argwhere(power >= LEAST_ARROW_KW)]


def _draw_price(axes: Any, scene: Scene) -> None:
    hours = DAY_START_HOUR + SLOT_H * np.arange(len(scene.day.import_eur_per_kwh))
    axes.step(hours, scene.day.import_eur_per_kwh, where="post", color="0.5", lw=1, label="import")
    axes.step(hours, scene.day.export_eur_per_kwh, where="post", color="0.75", lw=1, label="export")
    played = len(scene.price_eur_per_kwh)
    axes.step(hours[:played], scene.price_eur_per_kwh, where="post", color="#7b3294", lw=2, label="market")
    axes.axvline(hours[scene.slot], color="0.8", zorder=0)
    axes.set_xticks([12, 18, 24, 30, 36], ["12", "18", "0", "6", "12"])
    axes.set_ylabel("EUR/kWh")
    axes.legend(loc="upper right", fontsize=7, ncols=3)


def _draw_storage(axes: Any, scene: Scene) -> None:
    capacity = np.asarray(scene.world.stations.storage_kwh)
    numbers = np.arange(len(capacity))
    axes.bar(numbers, capacity, color="0.93", edgecolor="0.6")
    axes.bar(numbers, scene.energy_kwh, color="#0072b2")
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.set_xlabel("station")
    axes.set_ylabel("stored kWh")
