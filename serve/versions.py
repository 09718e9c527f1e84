"""Which numeric folders of a base path are served, by TensorFlow Serving's version policies."""

from __future__ import annotations

import logging
import os
import re

from tensorflow_serving.config import model_server_config_pb2

log = logging.getLogger(__name__)

_NUMBER = re.compile(r"-?\d+")


def aspired(config: model_server_config_pb2.ModelConfig) -> dict[int, str] | None:
    """Version -> folder of the versions that the policy wants served.

    Returns:
        None when the base path cannot be read: what is served then stays served. An empty
        dict when it can and holds no version: then nothing is to be served.
    """
    try:
        children = sorted(os.listdir(config.base_path))
    except OSError as error:
        log.error(
            "FileSystemStoragePathSource encountered a filesystem access error: "
            "Could not find base path %s for servable %s with error %s",
            config.base_path,
            config.name,
            error.strerror,
        )
        return None
    found = {
        int(child): os.path.join(config.base_path, child)
        for child in children
        if _NUMBER.fullmatch(child) and -(2**63) <= int(child) < 2**63
    }
    policy = config.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        wanted = found
    elif choice == "specific":
        wanted = {number: found[number] for number in policy.specific.versions if number in found}
        for number in policy.specific.versions:
            if number not in found:
                log.warning(
                    "Version %d of servable %s, which was requested to be served as a 'specific' "
                    "version in the servable's version policy, was not found in the file system",
                    number,
                    config.name,
                )
    else:
        count = max(policy.latest.num_versions, 1)
        wanted = dict(sorted(found.items(), reverse=True)[:count])
    if not wanted:
        log.warning(
            "No versions of servable %s found under base path %s. Did you forget to name your "
            "leaf directory as a number (eg. '/1/')?",
            config.name,
            config.base_path,
        )
    return wanted
