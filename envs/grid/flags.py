"""What a row of the general sweep has beside a line and a constant-power wye load: bits of its flags."""

from typing import Final

HAS_TRANSFER: Final = 1
HAS_SHUNT: Final = 2
HAS_DELTA: Final = 4
HAS_SHARES: Final = 8
