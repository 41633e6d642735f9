"""The plan for many machines over shared links (provider ``itp``) and what evacuates by it."""

from __future__ import annotations

NOVACRON_API = 1
