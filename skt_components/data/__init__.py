"""HDR samples: picture files, published data sets, prepared copies, previews."""

from skt_components.data.bracket_folder import BracketFolder
from skt_components.data.bracketire import BracketIRE
from skt_components.data.io import read_image, write_image
from skt_components.data.kalantari import Kalantari17, Tel23
from skt_components.data.mixing import MixedSamples, SamplePool
from skt_components.data.prepare import prepare
from skt_components.data.preview import save_contact_sheet, show_exposures, show_radiance
from skt_components.data.registry import PUBLISHED, PublishedDataset, find_dataset
from skt_components.data.sample import RAW_PEAK, HDRSample, make_bracket
from skt_components.data.verify import Verification, verify

__all__ = [
    "PUBLISHED",
    "RAW_PEAK",
    "BracketFolder",
    "BracketIRE",
    "HDRSample",
    "Kalantari17",
    "MixedSamples",
    "PublishedDataset",
    "SamplePool",
    "Tel23",
    "Verification",
    "find_dataset",
    "make_bracket",
    "prepare",
    "read_image",
    "save_contact_sheet",
    "show_exposures",
    "show_radiance",
    "verify",
    "write_image",
]
