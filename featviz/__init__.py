"""Feature visualization: images that maximize an objective of a trained network.

Example::

    from featviz import channel, open_network, visualize

    network = open_network()
    images = visualize(network, channel("blocks.5", [3, 14, 15]), n=3)  # (3, 256, 256, 3) uint8
"""

from featviz.canvas import COLOURS, KINDS, Canvas, Robustness, mean_magnitude
from featviz.capture import find_layers
from featviz.networks import DEFAULT, Network, network_names, open_network
from featviz.objectives import (
    Objective,
    channel,
    deepdream,
    direction,
    diversity,
    draw_direction,
    neuron,
)
from featviz.sampling import Recipe, draw_recipe
from featviz.visualize import (
    FEATVIZ_VERSION,
    PRECISIONS,
    OptimizedImages,
    Precision,
    PreparedNetwork,
    Stage,
    best_precision,
    optimize_images,
    plan_stages,
    prepare_network,
    visualize,
)

__all__ = [
    "COLOURS",
    "DEFAULT",
    "FEATVIZ_VERSION",
    "KINDS",
    "PRECISIONS",
    "Canvas",
    "Network",
    "Objective",
    "OptimizedImages",
    "Precision",
    "PreparedNetwork",
    "Recipe",
    "Robustness",
    "Stage",
    "best_precision",
    "channel",
    "deepdream",
    "direction",
    "diversity",
    "draw_direction",
    "draw_recipe",
    "find_layers",
    "mean_magnitude",
    "network_names",
    "neuron",
    "open_network",
    "optimize_images",
    "plan_stages",
    "prepare_network",
    "visualize",
]
