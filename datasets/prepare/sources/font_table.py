"""The font families: free fonts of Debian's main archive, one regular face per family."""

from __future__ import annotations

from typing import NamedTuple


class Family(NamedTuple):
    """One class of the font set."""

    name: str
    """The class's name."""
    package: str
    """Debian package, without `fonts-`."""
    file: str
    """File name of the face in the package."""


# The order is the labels' order: `--families N` takes the first N, mixed in style so that a small set is varied too.
FAMILIES = (
    Family("Accanthis", "adf-accanthis", "AccanthisADFStd-Regular.otf"),
    Family("Cantarell", "cantarell", "Cantarell-Regular.otf"),
    Family("Inconsolata", "inconsolata", "Inconsolata.otf"),
    Family("Dancing Script", "dancingscript", "DancingScript-Regular.otf"),
    Family("Roboto Slab", "roboto-slab", "RobotoSlab-Regular.otf"),
    Family("Lobster", "lobster", "lobster.otf"),
    Family("Baskervald", "adf-baskervald", "BaskervaldADFStd.otf"),
    Family("Comic Neue", "comic-neue", "ComicNeue-Regular.otf"),
    Family("Courier Prime", "courier-prime", "Courier Prime.otf"),
    Family("Gillius", "adf-gillius", "GilliusADF-Regular.otf"),
    Family("Goudy Bookletter", "goudybookletter", "GoudyBookletter1911.otf"),
    Family("Isabella", "isabella", "Isabella.ttf"),
    Family("Jura", "jura", "Jura-Regular.otf"),
    Family("OCR A", "ocr-a", "OCRA.ttf"),
    Family("Bebas Neue", "bebas-neue", "BebasNeue-Regular.otf"),
    Family("Old Standard", "oldstandard", "OldStandard-Regular.ttf"),
    Family("Yanone Kaffeesatz", "yanone-kaffeesatz", "YanoneKaffeesatz-Regular.otf"),
    Family("Kaushan Script", "kaushanscript", "KaushanScript-Regular.otf"),
    Family("Quicksand", "quicksand", "Quicksand-Regular.ttf"),
    Family("Essays 1743", "essays1743", "Essays1743.ttf"),
    Family("B612", "b612", "B612-Regular.otf"),
    Family("Humor Sans", "humor-sans", "Humor-Sans.ttf"),
    Family("Mekanus", "adf-mekanus", "MekanusADFStd-Regular.otf"),
    Family("Allerta", "allerta", "allerta_medium.otf"),
    Family("Gentium Basic", "sil-gentium-basic", "GenBasR.ttf"),
    Family("Cabin Sketch", "cabinsketch", "CabinSketch-Regular.ttf"),
    Family("Monofur", "monofur", "monof55.ttf"),
    Family("Play", "play", "Play-Regular.ttf"),
    Family("Dosis", "dosis", "Dosis-Book.otf"),
    Family("Anonymous Pro", "anonymous-pro", "Anonymous Pro.ttf"),
    Family("EB Garamond", "ebgaramond", "EBGaramond12-Regular.otf"),
    Family("Stay Puft", "staypuft", "StayPuft.ttf"),
    Family("Manrope", "manrope", "Manrope-Regular.ttf"),
    Family("Oldania", "adf-oldania", "OldaniaADFStd-Regular.otf"),
    Family("Femke Klaver", "femkeklaver", "femkeklaver.ttf"),
    Family("Arapey", "arapey", "Arapey-Regular.otf"),
    Family("Comfortaa", "comfortaa", "Comfortaa-Regular.ttf"),
    Family("GNU Typewriter", "gnutypewriter", "GNUTypewriter.ttf"),
    Family("Junction", "junction", "Junction.otf"),
    Family("Leckerli One", "leckerli-one", "LeckerliOne-Regular.ttf"),
    Family("Caladea", "crosextra-caladea", "Caladea-Regular.ttf"),
    Family("Berenika", "klaudia-berenika", "Berenika.ttf"),
    Family("Open DIN", "opendin", "OSP-DIN.ttf"),
    Family("Prociono", "prociono", "Prociono.otf"),
    Family("Ikarius", "adf-ikarius", "IkariusADFStd-Regular.otf"),
    Family("Kristi", "kristi", "Kristi.ttf"),
    Family("Mononoki", "mononoki", "mononoki-Regular.ttf"),
    Family("Romande", "adf-romande", "RomandeADFStd-Regular.otf"),
    Family("National Park", "national-park", "NationalPark-Regular.otf"),
    Family("Averia Serif", "averia-serif-gwf", "AveriaSerifGWF-Regular.ttf"),
    Family("Carlito", "crosextra-carlito", "Carlito-Regular.ttf"),
    Family("OpenDyslexic", "opendyslexic", "OpenDyslexic-Regular.otf"),
    Family("Fanwood", "fanwood", "Fanwood.otf"),
    Family("Summersby", "summersby", "summersby.ttf"),
    Family("Universalis", "adf-universalis", "UniversalisADFStd-Regular.otf"),
    Family("Hermit", "hermit", "Hermit-medium.otf"),
    Family("Irianis", "adf-irianis", "IrianisADFStd-Regular.otf"),
    Family("Karla", "karla", "Karla-Regular.otf"),
    Family("Tomson Talks", "tomsontalks", "TomsonTalks.ttf"),
    Family("Century Catalogue", "century-catalogue", "Century-Catalogue.ttf"),
    Family("Sora", "sora", "Sora-Regular.otf"),
    Family("Tribun", "adf-tribun", "TribunADFStd-Regular.otf"),
    Family("Ubuntu Title", "ubuntu-title", "Ubuntu-Title.ttf"),
    Family("Lobster Two", "lobstertwo", "LobsterTwo-Regular.otf"),
    Family("Libris", "adf-libris", "LibrisADFStd-Regular.otf"),
    Family("Oxygen", "oxygen", "Oxygen-Sans.ttf"),
    Family("Linden Hill", "lindenhill", "LindenHill.otf"),
    Family("Solothurn", "adf-solothurn", "Solothurn-Regular.otf"),
    Family("Okolaks", "okolaks", "okolaksRegular.ttf"),
    Family("Routed Gothic", "routed-gothic", "routed-gothic.ttf"),
    Family("OCR B", "ocr-b", "OCRB.otf"),
)
