"""Words of label tables: names of columns, unknown values, yes and no."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names of columns, in lower case, without spaces, dots, dashes and underscores.
PATH_NAMES = _words(
    "image images img imgs path paths file files filename filenames filepath imagepath imgpath"
    " imagefile imagefilename imagename imgname imageid imgid relpath relativepath fname picture"
    " photo name bild bildname bildpfad datei dateiname dateipfad pfad"
)
ID_NAMES = _words("id ids key uid uuid index idx no nr level0")
CLASS_NAMES = _words(
    "class classes classname classid classlabel label labels labelname labelid category categories"
    " categoryname categoryid target targets targetname groundtruth gt klasse klassen kategorie"
    " species breed diagnosis dx"
)
# columns of these names may also hold something else
WEAK_CLASS_NAMES = _words("y tag tags type kind art typ")
SPLIT_NAMES = _words("split splits set subset partition phase usage fold")
TRAIN_WORDS = _words("train training trainval")  # cells of such a column
TEST_WORDS = _words("test testing val valid validation dev eval evaluation holdout")
OTHER_NAMES = ID_NAMES | _words(
    "comment comments remark remarks note notes bemerkung bemerkungen kommentar width height breite"
    " höhe hoehe w h size filesize date datum time timestamp year patient subject author"
    " photographer source license url md5 sha1 sha256 hash bbox xmin ymin xmax ymax lat lon"
    " latitude longitude age sex gender score confidence weight"
)

MINUS_ONE = _words("-1 -1.0 -1,0")
# "none" and "unknown" in lower case may be classes.
UNKNOWN = (
    MINUS_ONE
    | {""}
    | _words("nan NaN NAN -nan -NaN NA N/A n/a #N/A #NA <NA> NaT None null Null NULL ?")
)

# Yes and no: a column uses the words of one family. Numbers are 1 and 0, words in lower case.
YES_AND_NO = (
    (_words("1 true t yes y on"), _words("0 false f no n off")),
    (_words("1 wahr ja j"), _words("0 falsch nein n")),
    (_words("1 vrai oui o"), _words("0 faux non n")),
    (_words("1 verdadero vero si sí sì s"), _words("0 falso no n")),
    (_words("x ✓ ✔"), _words("-")),
)
