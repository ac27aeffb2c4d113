"""Run by A1111 and Forge before they read their options: adds ours."""


def preload(parser):
    """Called by the webui with its argparse parser."""
    parser.add_argument(
        "--pu-unlearn-allow-dir",
        action="append",
        metavar="DIR",
        help="PU Unlearn takes folders of images below DIR; may be given more than once [the webui's data folder]",
    )
