"""MovieLens-1M: ratings, with the features of users and movies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from prismrec.config import UserError
from prismrec.data.adapters.columns import Columns
from prismrec.data.adapters.source import DEFAULT_OPTIONS, PrepareOptions, find_file, read_csv
from prismrec.data.adapters.vocabulary import Vocabulary
from prismrec.data.schema import DataSchema

HOLDS = "ratings.dat, users.dat and movies.dat of MovieLens-1M"
SOURCE = "MovieLens-1M, GroupLens (Harper and Konstan 2015), research use, no redistribution"
LIKED_FROM = 4
NUM_FOLDS = 10
FOLD_SEED = 20150101


def prepare(source: Path, out: Path, options: PrepareOptions = DEFAULT_OPTIONS) -> DataSchema:
    """Join the ratings with users and movies and write them into `out`.

    The published file's fourth column, seconds since 1970, is the time. Copies exist that hold
    the position in the user's own order there instead: `time` then orders a user's rows only.

    Raises:
        UserError: a file is missing or cannot be parsed.
    """
    ratings = _fields(find_file(source, "ratings.dat", HOLDS), ["user", "movie", "rating", "time"])
    users = _fields(
        find_file(source, "users.dat", HOLDS), ["user", "gender", "age", "occupation", "zip"]
    )
    movies = _movies(find_file(source, "movies.dat", HOLDS))
    user_rows = pc.index_in(ratings["user"], value_set=users["user"])
    movie_rows = pc.index_in(ratings["movie"], value_set=movies["movie"])
    columns = Columns()
    columns.add("time", "time", ratings["time"], "fourth column of ratings.dat")
    user_ids = Vocabulary.of(users["user"], ratings["user"])
    columns.add_encoded("user_id", user_ids.encode(ratings["user"]), user_ids)
    movie_ids = Vocabulary.of(movies["movie"], ratings["movie"])
    columns.add_encoded("movie_id", movie_ids.encode(ratings["movie"]), movie_ids)
    for name in ("gender", "age", "occupation", "zip"):
        columns.add_ids(name, pc.take(users[name], user_rows), "of the user")
    columns.add_ids("year", pc.take(movies["year"], movie_rows), "year the movie came out")
    genres = pc.take(movies["genres"], movie_rows)
    genre_ids = Vocabulary.of(movies["genres"])
    columns.add_encoded("genres", genre_ids.encode_bags(genres), genre_ids)
    liked = pc.cast(pc.greater_equal(ratings["rating"], LIKED_FROM), pa.int8())
    columns.add("liked", "label", liked, f"rating of {LIKED_FROM} or more")
    columns.add("rating", "other", ratings["rating"], "1 to 5; drop the threes by `rating != 3`")
    folds = np.random.default_rng(FOLD_SEED).integers(0, NUM_FOLDS, ratings.num_rows)
    columns.add("fold", "other", folds, f"0..{NUM_FOLDS - 1} at random: a split by equal shares")
    return columns.write(out, "movielens", SOURCE)


def _fields(path: Path, names: list[str]) -> pa.Table:
    """A file whose fields are parted by `::`, read as fields parted by `:` with gaps between."""
    with_gaps = [part for name in names for part in (name, "gap_" + name)][:-1]
    text = {"gender": pa.string(), "zip": pa.string()}
    return read_csv(
        path,
        convert=csv.ConvertOptions(
            include_columns=names,
            column_types={name: text.get(name, pa.int64()) for name in names},
        ),
        parse=csv.ParseOptions(delimiter=":", quote_char=False),
        read=csv.ReadOptions(column_names=with_gaps),
    )


def _movies(path: Path) -> pa.Table:
    """Movie, year and genres. Titles hold colons, so whole lines are read and cut here."""
    lines = read_csv(
        path,
        parse=csv.ParseOptions(delimiter="\x01", quote_char=False),
        read=csv.ReadOptions(column_names=["line"], encoding="latin1"),
    )["line"]
    parts = pc.extract_regex(lines, r"^(?P<movie>\d+)::.*\((?P<year>\d{4})\)\s*::(?P<genres>.*)$")
    if parts.null_count:
        first = pc.index(parts.is_null(), True).as_py()
        raise UserError(
            f"{path}: line {first + 1} is not `MovieID::Title (Year)::Genres`; "
            "fetch the file again or correct it"
        )
    movie, year, genres = pa.table({"parts": parts}).flatten().columns
    return pa.table(
        {
            "movie": movie.cast(pa.int64()),
            "year": year.cast(pa.int64()),
            "genres": pc.split_pattern(genres, "|"),
        }
    )
