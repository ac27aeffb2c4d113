"""Add the extension's option; A1111 and Forge run this before they read their command line."""


def preload(parser):
    """Add the option. Args: parser: the webui's argparse parser."""
    parser.add_argument(
        "--pu-unlearn-allow-dir",
        action="append",
        metavar="DIR",
        help="PU Unlearn accepts folders of images below DIR; may be given more than once [the webui's data folder]",
    )
