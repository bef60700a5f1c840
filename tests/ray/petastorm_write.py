"""Writes a data set with petastorm and Spark, in petastorm's own environment.

python petastorm_write.py URL ROWS
"""

import decimal
import os
import sys

import numpy as np
from petastorm.codecs import CompressedImageCodec, CompressedNdarrayCodec, NdarrayCodec, ScalarCodec
from petastorm.etl.dataset_metadata import materialize_dataset
from petastorm.unischema import Unischema, UnischemaField, dict_to_spark_row
from pyspark.sql import SparkSession
from pyspark.sql.types import (
    BooleanType,
    DecimalType,
    DoubleType,
    IntegerType,
    LongType,
    StringType,
)

PICTURE = CompressedImageCodec.__new__(CompressedImageCodec)  # its __init__ asks for OpenCV
PICTURE._image_codec, PICTURE._quality = ".png", 80

SCHEMA = Unischema(
    "Clicks",
    [
        UnischemaField("row", np.int64, (), ScalarCodec(LongType()), False),
        UnischemaField("user", np.int32, (), ScalarCodec(IntegerType()), True),
        UnischemaField("price", np.float64, (), ScalarCodec(DoubleType()), False),
        UnischemaField("click", np.bool_, (), ScalarCodec(BooleanType()), False),
        UnischemaField("word", np.str_, (), ScalarCodec(StringType()), False),
        UnischemaField("cost", decimal.Decimal, (), ScalarCodec(DecimalType(8, 2)), False),
        UnischemaField("seen", np.int64, (None,), NdarrayCodec(), False),
        UnischemaField("grid", np.float32, (2, 3), CompressedNdarrayCodec(), False),
        UnischemaField("picture", np.uint8, (4, 4, 3), PICTURE, True),
    ],
)


def row(number: int) -> dict:
    return {
        "row": number,
        "user": None if number % 7 == 0 else number % 50,
        "price": number / 4,
        "click": number % 3 == 0,
        "word": f"w{number % 5}",
        "cost": decimal.Decimal(number) / 100,
        "seen": np.arange(number % 4, dtype=np.int64) + number,
        "grid": np.arange(6, dtype=np.float32).reshape(2, 3) + number,
        "picture": None,
    }


def main(url: str, rows: int) -> None:
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.config("spark.ui.enabled", "false")
    spark = builder.config("spark.driver.host", "127.0.0.1").master("local[1]").getOrCreate()
    with materialize_dataset(spark, url, SCHEMA, 1):
        encoded = spark.sparkContext.parallelize(range(rows), 3).map(row)
        frame = encoded.map(lambda each: dict_to_spark_row(SCHEMA, each))
        made = spark.createDataFrame(frame, SCHEMA.as_spark_schema())
        made.write.mode("overwrite").parquet(url)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
