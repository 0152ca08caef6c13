"""The networks: three bands in, one logit out, with the layer before the logit within reach.

ResNet-18 is written here in plain torch (same layers and parameter names as torchvision's), so that training and
scoring run where torchvision does not import. EfficientNetV2-S and B0 and ConvNeXt-Tiny are torchvision's. The
194k-parameter shielded ResNet, metadata inputs and the frozen-features baseline are left for the detector study.
"""

import torch
from torch import nn
from torch.nn import functional

from lensaudit.artifacts import UserError


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, basic block)."""

    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(x)) + shortcut)


class ResNet18(nn.Module):
    """The standard ResNet-18 body: 7x7 stride-2 stem, pooling, four stages; returns 512 features per image."""

    n_features = 512

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = (64, 64, 128, 256, 512)
        for number in range(1, 5):
            n_in, n_out = widths[number - 1], widths[number]
            stage = nn.Sequential(Block(n_in, n_out, 1 if number == 1 else 2), Block(n_out, n_out, 1))
            setattr(self, f"layer{number}", stage)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean((2, 3))


class Network(nn.Module):
    """A body that returns features and a linear head that returns the logit.

    Parameters
    ----------
    body : nn.Module
        Maps (N, 3, S, S) to (N, n_features).
    n_features : int
    """

    def __init__(self, body, n_features):
        super().__init__()
        self.body = body
        self.head = nn.Linear(n_features, 1)

    def forward(self, x):
        """Return logits, Tensor of shape (N,), float32."""
        return self.head(self.body(x).float())[:, 0]


def _wrap_torchvision(name, layer):
    def build():
        import torchvision

        model = getattr(torchvision.models, name)(weights=None)
        n_features = model.classifier[layer].in_features
        model.classifier[layer] = nn.Identity()
        return model, n_features

    return build


BUILDERS = {
    "resnet18": lambda: (ResNet18(), ResNet18.n_features),
    "efficientnet_b0": _wrap_torchvision("efficientnet_b0", 1),
    "efficientnet_v2_s": _wrap_torchvision("efficientnet_v2_s", 1),
    "convnext_tiny": _wrap_torchvision("convnext_tiny", 2),
}


def list_stages(body):
    """Return the stages of a body by name, first to last: those of ResNet-18, or torchvision's ``features``."""
    stages = body.features if hasattr(body, "features") else body
    named = [(n, m) for n, m in stages.named_children() if stages is not body or n.startswith("layer")]
    return {n if n.startswith("layer") else f"features{n}": m for n, m in named}


def make_network(name, seed=0):
    """Build a network with weights drawn from `seed`; nothing is downloaded.

    Parameters
    ----------
    name : str
        One of `BUILDERS`.
    seed : int

    Returns
    -------
    Network

    Raises
    ------
    UserError
        For an unknown name; the message lists the known ones.
    """
    if name not in BUILDERS:
        raise UserError(f"architecture {name!r} unknown; known are {', '.join(BUILDERS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network(*BUILDERS[name]())
