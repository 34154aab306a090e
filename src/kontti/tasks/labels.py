"""Labels of containers that say what is to become of their tasks (containerd's).

containerd.io/restart.status              running | stopped | created: what is wanted
containerd.io/restart.policy              always (unset) | on-failure[:n] | unless-stopped | no
containerd.io/restart.count               how often it was started again
containerd.io/restart.explicitly-stopped  true: a user stopped it; unless-stopped leaves it be
containerd.io/restart.loguri              where the new task's output goes
"""

from __future__ import annotations

_PREFIX = "containerd.io/restart."
STATUS, POLICY, COUNT = _PREFIX + "status", _PREFIX + "policy", _PREFIX + "count"
EXPLICITLY_STOPPED, LOG_URI = _PREFIX + "explicitly-stopped", _PREFIX + "loguri"
OLD_LOG_PATH = _PREFIX + "logpath"
