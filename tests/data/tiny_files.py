"""Contents of small files in the formats of own data."""

import numpy as np

from elstm.data.readers.table import Columns

COLUMNS = Columns(id="id", label="kind")
X = np.arange(24.0).reshape(2, 4, 3)  # two sequences of four steps and three features
TABLE = "id,kind,t,a,b\nx,cat,2,3,4\nx,cat,1,1,2\ny,dog,1,5,6\n"
TS = """# a comment
@problemName Two
@timeStamps false
@missing true
@univariate false
@dimensions 2
@equalLength false
@classLabel true cat dog
@data
1,2,3:4,5,6:cat
7,?:8,NaN:dog
"""
