//! The values of one column for one prompt, and how they become Arrow arrays.

use std::sync::Arc;

use arrow_array::builder::{ListBuilder, PrimitiveBuilder};
use arrow_array::types::{ArrowPrimitiveType, Float32Type, Float64Type, UInt32Type};
use arrow_array::{
    ArrayRef, BooleanArray, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray,
    UInt32Array, UInt64Array,
};
use arrow_schema::{Field, SchemaRef};

use crate::error::{Error, Result};
use crate::schema::{ColumnKind, ELEMENT, TableInfo};

macro_rules! columns {
    ($($variant:ident($value:ty), $kind:literal;)*) => {
        /// The values of one column, one for each row; `None` where a row has none.
        ///
        /// `Vec<T>` and `Vec<Option<T>>` convert into the column that holds `T`:
        ///
        /// ```
        /// use store::Column;
        /// assert_eq!(Column::from(vec![1.5, 2.0]).len(), 2);
        /// assert_eq!(Column::from(vec![Some("a"), None]).len(), 2);
        /// ```
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum Column {
            $(#[doc = $kind] $variant(Vec<Option<$value>>),)*
        }

        impl Column {
            /// The number of rows.
            pub fn len(&self) -> usize {
                match self {
                    $(Column::$variant(values) => values.len(),)*
                }
            }

            /// What the column holds.
            pub fn kind(&self) -> ColumnKind {
                match self {
                    $(Column::$variant(_) => ColumnKind::$variant,)*
                }
            }

            /// The first row without a value.
            pub(crate) fn first_null(&self) -> Option<usize> {
                match self {
                    $(Column::$variant(values) => values.iter().position(Option::is_none),)*
                }
            }
        }

        $(
            impl From<Vec<Option<$value>>> for Column {
                fn from(values: Vec<Option<$value>>) -> Column {
                    Column::$variant(values)
                }
            }

            impl From<Vec<$value>> for Column {
                fn from(values: Vec<$value>) -> Column {
                    Column::$variant(values.into_iter().map(Some).collect())
                }
            }
        )*
    };
}

columns! {
    U32(u32), "Unsigned 32-bit integers.";
    U64(u64), "Unsigned 64-bit integers.";
    I64(i64), "Signed 64-bit integers.";
    F32(f32), "Single-precision numbers.";
    F64(f64), "Double-precision numbers.";
    Bool(bool), "True or false.";
    Text(String), "UTF-8 text.";
    ListU32(Vec<u32>), "A list of unsigned 32-bit integers in each row.";
    ListF32(Vec<f32>), "A list of single-precision numbers in each row.";
    ListF64(Vec<f64>), "A list of double-precision numbers in each row.";
}

impl From<Vec<&str>> for Column {
    fn from(values: Vec<&str>) -> Column {
        Column::Text(values.into_iter().map(|v| Some(v.to_owned())).collect())
    }
}

impl From<Vec<Option<&str>>> for Column {
    fn from(values: Vec<Option<&str>>) -> Column {
        Column::Text(values.into_iter().map(|v| v.map(str::to_owned)).collect())
    }
}

impl Column {
    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the values, lengths of lists and texts included.
    fn bytes(&self) -> u64 {
        fn lists<T>(values: &[Option<Vec<T>>]) -> usize {
            let inner: usize = values.iter().flatten().map(Vec::len).sum();
            inner * size_of::<T>() + values.len() * size_of::<i32>()
        }
        let bytes = match self {
            Column::U32(v) => v.len() * 4,
            Column::U64(v) => v.len() * 8,
            Column::I64(v) => v.len() * 8,
            Column::F32(v) => v.len() * 4,
            Column::F64(v) => v.len() * 8,
            Column::Bool(v) => v.len(),
            Column::Text(v) => {
                v.iter().flatten().map(String::len).sum::<usize>() + v.len() * size_of::<i32>()
            }
            Column::ListU32(v) => lists(v),
            Column::ListF32(v) => lists(v),
            Column::ListF64(v) => lists(v),
        };
        bytes as u64
    }

    pub(crate) fn into_array(self) -> ArrayRef {
        fn list<P: ArrowPrimitiveType>(rows: Vec<Option<Vec<P::Native>>>) -> ArrayRef {
            let mut builder = ListBuilder::new(PrimitiveBuilder::<P>::new())
                .with_field(Field::new(ELEMENT, P::DATA_TYPE, false));
            for row in rows {
                match row {
                    None => builder.append_null(),
                    Some(values) => {
                        builder.values().append_slice(&values);
                        builder.append(true);
                    }
                }
            }
            Arc::new(builder.finish())
        }
        match self {
            Column::U32(v) => Arc::new(UInt32Array::from(v)),
            Column::U64(v) => Arc::new(UInt64Array::from(v)),
            Column::I64(v) => Arc::new(Int64Array::from(v)),
            Column::F32(v) => Arc::new(Float32Array::from(v)),
            Column::F64(v) => Arc::new(Float64Array::from(v)),
            Column::Bool(v) => Arc::new(BooleanArray::from(v)),
            Column::Text(v) => Arc::new(StringArray::from(v)),
            Column::ListU32(v) => list::<UInt32Type>(v),
            Column::ListF32(v) => list::<Float32Type>(v),
            Column::ListF64(v) => list::<Float64Type>(v),
        }
    }
}

/// Checks one prompt's columns against the table and joins them to a record batch.
///
/// Returns the batch and the bytes of its values; the columns may come in any order.
pub(crate) fn batch(
    table: &TableInfo,
    schema: &SchemaRef,
    prompt: &str,
    columns: Vec<(&str, Column)>,
) -> Result<(RecordBatch, u64)> {
    let mut given: Vec<Option<(&str, Column)>> = columns.into_iter().map(Some).collect();
    let names_differ = |given: &[Option<(&str, Column)>]| {
        let expected = table.columns.iter().map(|c| c.name.clone()).collect();
        let got = given.iter().flatten().map(|(n, _)| (*n).to_owned()).collect();
        Error::Columns { table: table.name.clone(), expected, got }
    };
    let matches = table.columns.iter().all(|c| {
        let same = |g: &&Option<(&str, Column)>| g.as_ref().is_some_and(|(n, _)| *n == c.name);
        given.iter().filter(same).count() == 1
    });
    if !matches || given.len() != table.columns.len() {
        return Err(names_differ(&given));
    }

    let rows = given.first().and_then(Option::as_ref).map_or(0, |(_, c)| c.len());
    let mut bytes = (rows * (prompt.len() + size_of::<i32>())) as u64;
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(given.len() + 1);
    arrays.push(Arc::new(StringArray::from(vec![prompt; rows])));
    for info in &table.columns {
        let found = given
            .iter_mut()
            .find(|g| g.as_ref().is_some_and(|(n, _)| *n == info.name))
            .and_then(Option::take);
        let Some((_, column)) = found else {
            return Err(names_differ(&given));
        };
        if column.kind() != info.kind {
            return Err(Error::Kind {
                table: table.name.clone(),
                column: info.name.clone(),
                expected: info.kind,
                got: column.kind(),
            });
        }
        if column.len() != rows {
            return Err(Error::Rows {
                table: table.name.clone(),
                column: info.name.clone(),
                expected: rows,
                got: column.len(),
            });
        }
        if let (false, Some(row)) = (info.nullable, column.first_null()) {
            return Err(Error::Null { table: table.name.clone(), column: info.name.clone(), row });
        }
        bytes += column.bytes();
        if bytes > crate::MAX_PROMPT_ROW_BYTES {
            return Err(Error::TooManyRows {
                id: prompt.to_owned(),
                table: table.name.clone(),
                bytes,
            });
        }
        arrays.push(column.into_array());
    }
    let batch = RecordBatch::try_new(schema.clone(), arrays)
        .map_err(|source| Error::Arrow { table: table.name.clone(), source })?;
    Ok((batch, bytes))
}
