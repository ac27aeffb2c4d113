"""Every setting once: its type, default and help; how argv, TOML and kohya's flags become one."""
