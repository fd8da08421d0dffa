"""The attacks by name."""

from collections.abc import Mapping

from validation.attacks.base import Attack
from validation.attacks.budget import AttackName
from validation.attacks.inversion import Inversion
from validation.attacks.matching import Matching
from validation.attacks.search import Search

ATTACKS: Mapping[AttackName, Attack] = {attack.name: attack for attack in (Search(), Matching(), Inversion())}
