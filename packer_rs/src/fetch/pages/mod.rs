//! Binary values in the columns of a Parquet file. In: a file that can be read at offsets. Out: for each row the bytes,
//! and where they lie in the file as they are, if they do. Apart, since it alone knows of row groups and pages.
//!
//! Values of uncompressed pages lie in the file as they are, so an index points at them as into a tar. Those of
//! compressed pages are read page by page: a page is the least that can be decompressed, and holds few images. Where
//! pages lie is read from the file's own index of them if it has one, and else from their headers.

mod buffers;
mod input;
mod unpack;

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use parquet::basic::{Compression, Type};
use parquet::column::page::PageReader;
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::serialized_reader::SerializedPageReader;

use crate::failure::caught;
use crate::fetch::window::ReadAt;
use crate::sync::lock;
pub use buffers::Buffers;
use input::Input;
use unpack::Unpacked;

/// What goes wrong with a Parquet file: a fault of the system, or of the file.
#[derive(Debug)]
pub enum Trouble {
    /// The system refused.
    Io(io::Error),
    /// The file is broken, or is not what was indexed.
    File(String),
}

impl From<ParquetError> for Trouble {
    fn from(error: ParquetError) -> Self {
        match error {
            ParquetError::External(inner) => match inner.downcast::<io::Error>() {
                Ok(e) => Self::Io(*e),
                Err(e) => Self::File(e.to_string()),
            },
            other => Self::File(other.to_string()),
        }
    }
}

type Result<T> = std::result::Result<T, Trouble>;

fn broken<T>(what: impl Into<String>) -> Result<T> {
    Err(Trouble::File(what.into()))
}

/// The pages of a column chunk.
type Table = Arc<Vec<PageLocation>>;

/// One open file.
pub struct Pages {
    source: Arc<dyn ReadAt + Send + Sync>,
    length: u64,
    buffers: Arc<Buffers>,
    metadata: ParquetMetaData,
    /// First row of each row group, then their end.
    starts: Vec<u64>,
    /// Pages by (leaf column, row group), as far as they were wanted.
    tables: Mutex<HashMap<(usize, usize), Table>>,
}

/// A page of a column: its leaf, its row group, and which page of it.
pub type PageKey = (usize, usize, usize);

impl Pages {
    /// Reads the footer of a file of `length` bytes; pages will be read into `buffers`.
    pub fn open(source: Arc<dyn ReadAt + Send + Sync>, length: u64, buffers: Arc<Buffers>) -> Result<Self> {
        let input = Input::new(source.clone(), length, buffers.clone());
        let reader = ParquetMetaDataReader::new().with_offset_index_policy(PageIndexPolicy::Optional);
        let metadata = guarded(|| Ok(reader.parse_and_finish(&input)?))?;
        let mut starts = vec![0u64];
        for group in metadata.row_groups() {
            let rows = u64::try_from(group.num_rows()).or_else(|_| broken("a row group of negative length"))?;
            starts.push(starts[starts.len() - 1].saturating_add(rows));
        }
        Ok(Self { source, length, buffers, metadata, starts, tables: Mutex::default() })
    }

    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Rows of the file.
    pub fn rows(&self) -> u64 {
        self.starts[self.starts.len() - 1]
    }

    /// The leaf column of this dotted name.
    pub fn leaf(&self, name: &str) -> Result<usize> {
        let schema = self.metadata.file_metadata().schema_descr();
        let Some(leaf) = (0..schema.num_columns()).find(|&i| schema.column(i).path().string() == name) else {
            return broken(format!("there is no column '{name}'"));
        };
        let column = schema.column(leaf);
        if column.physical_type() != Type::BYTE_ARRAY || column.max_rep_level() > 0 {
            return broken(format!("column '{name}' does not hold one binary value a row"));
        }
        Ok(leaf)
    }

    /// The page that holds `row`, and the row's place in it.
    pub fn page_of(&self, leaf: usize, row: u64) -> Result<(PageKey, usize)> {
        let group = self.group_of(row)?;
        let within = (row - self.starts[group]) as i64;
        let table = self.table(leaf, group)?;
        let page = table.partition_point(|page| page.first_row_index <= within);
        match page.checked_sub(1) {
            Some(page) => Ok(((leaf, group, page), (within - table[page].first_row_index) as usize)),
            None => broken("its pages do not cover its rows"),
        }
    }

    /// The row group of a row.
    pub fn group_of(&self, row: u64) -> Result<usize> {
        if row >= self.rows() {
            return broken(format!("row {row} of a file of {} rows", self.rows()));
        }
        Ok(self.starts.partition_point(|&start| start <= row) - 1)
    }

    /// Whether the pages of a row group are known, so that `page_of` reads nothing.
    pub fn knows(&self, leaf: usize, group: usize) -> bool {
        let mut tables = lock(&self.tables);
        if !tables.contains_key(&(leaf, group))
            && let Some(listed) = self.listed(leaf, group)
        {
            tables.insert((leaf, group), Arc::new(listed));
        }
        tables.contains_key(&(leaf, group))
    }

    /// Where the pages of a row group lie in the file, together; nowhere, if the file makes no sense.
    pub fn chunk(&self, leaf: usize, group: usize) -> Range<u64> {
        let chunk = self.metadata.row_group(group).column(leaf);
        let start = chunk.dictionary_page_offset().unwrap_or(chunk.data_page_offset());
        match (u64::try_from(start), u64::try_from(chunk.compressed_size())) {
            (Ok(start), Ok(length)) => start.min(self.length)..start.saturating_add(length).min(self.length),
            _ => 0..0,
        }
    }

    /// The same of all row groups, in the order of the file.
    pub fn chunks(&self, leaf: usize) -> Vec<Range<u64>> {
        (0..self.metadata.num_row_groups()).map(|group| self.chunk(leaf, group)).collect()
    }

    /// Where a page lies in the file.
    pub fn range_of(&self, (leaf, group, page): PageKey) -> Result<Range<u64>> {
        let place = &self.table(leaf, group)?[page];
        match (u64::try_from(place.offset), u64::try_from(place.compressed_page_size)) {
            (Ok(start), Ok(bytes)) => Ok(start..start.saturating_add(bytes).min(self.length)),
            _ => broken("a page that lies nowhere"),
        }
    }

    /// All values of a page; null where there is none.
    pub fn read(&self, key: PageKey) -> Result<Vec<Option<ByteArray>>> {
        Ok(self.values(key, &self.input())?.into_iter().map(|(value, _)| value).collect())
    }

    /// Calls `each` for every row of a column: its bytes, and where they lie in the file as they are.
    pub fn scan(&self, leaf: usize, mut each: impl FnMut(Option<&[u8]>, Option<u64>)) -> Result<()> {
        for group in 0..self.metadata.num_row_groups() {
            for page in 0..self.table(leaf, group)?.len() {
                for (value, place) in self.values((leaf, group, page), &self.input())? {
                    each(value.as_ref().map(ByteArray::data), place);
                }
            }
        }
        Ok(())
    }

    fn input(&self) -> Arc<Input> {
        Arc::new(Input::new(self.source.clone(), self.length, self.buffers.clone()))
    }

    fn group_rows(&self, group: usize) -> usize {
        (self.starts[group + 1] - self.starts[group]) as usize
    }

    fn table(&self, leaf: usize, group: usize) -> Result<Table> {
        if let Some(known) = lock(&self.tables).get(&(leaf, group)) {
            return Ok(known.clone());
        }
        let found = match self.listed(leaf, group) {
            Some(listed) => listed,
            None => guarded(|| self.walk(leaf, group))?,
        };
        let found = Arc::new(found);
        lock(&self.tables).insert((leaf, group), found.clone());
        Ok(found)
    }

    /// The data pages of a column chunk as the file's index of pages has them, if it does and makes sense.
    fn listed(&self, leaf: usize, group: usize) -> Option<Vec<PageLocation>> {
        let index = self.metadata.page_index_for_row_group(group);
        let listed = index.offset_index(leaf)?.page_locations();
        let chunk = self.chunk(leaf, group);
        let within = |page: &PageLocation| {
            u64::try_from(page.offset).is_ok_and(|at| chunk.contains(&at)) && page.compressed_page_size > 0
        };
        let rising = listed.is_sorted_by(|a, b| a.offset < b.offset && a.first_row_index < b.first_row_index);
        let first = listed.first().is_some_and(|page| page.first_row_index == 0);
        (first && rising && listed.iter().all(within)).then(|| listed.clone())
    }

    /// Finds the data pages of a column chunk by their headers.
    fn walk(&self, leaf: usize, group: usize) -> Result<Vec<PageLocation>> {
        let (input, rows) = (self.input(), self.group_rows(group));
        let chunk = self.metadata.row_group(group).column(leaf);
        let mut reader = SerializedPageReader::new(input.clone(), chunk, rows, None)?;
        let (mut found, mut row) = (Vec::<PageLocation>::new(), 0usize);
        while let Some(page) = reader.peek_next_page()? {
            let offset = input.header.load(Ordering::Relaxed) as i64;
            if let Some(before) = found.last_mut() {
                before.compressed_page_size = i32::try_from(offset - before.offset).unwrap_or(i32::MAX);
            }
            if !page.is_dict {
                found.push(PageLocation { offset, compressed_page_size: 0, first_row_index: row as i64 });
                // Without repetition a level is a row.
                row += page.num_rows.or(page.num_levels).unwrap_or(0);
            }
            reader.skip_next_page()?;
        }
        let (start, length) = chunk.byte_range();
        if let Some(last) = found.last_mut() {
            last.compressed_page_size = i32::try_from((start + length) as i64 - last.offset).unwrap_or(i32::MAX);
        }
        if row != rows {
            return broken(format!("a column chunk of {row} values for {rows} rows"));
        }
        Ok(found)
    }

    /// Values share the memory of their page.
    fn values(
        &self,
        (leaf, group, page): PageKey,
        input: &Arc<Input>,
    ) -> Result<Vec<(Option<ByteArray>, Option<u64>)>> {
        let table = self.table(leaf, group)?;
        let rows = self.group_rows(group);
        let first = table[page].first_row_index as usize;
        let count = table.get(page + 1).map_or(rows, |next| next.first_row_index as usize).saturating_sub(first);
        let chunk = self.metadata.row_group(group).column(leaf);
        guarded(|| {
            let column = self.metadata.file_metadata().schema_descr().column(leaf);
            let most = column.max_def_level();
            let pages = Unpacked::new(input.clone(), chunk, rows, table.to_vec())?;
            let mut reader = ColumnReaderImpl::<ByteArrayType>::new(column, Box::new(pages));
            reader.skip_records(first)?;
            let (mut levels, mut found) = (Vec::<i16>::new(), Vec::<ByteArray>::new());
            let (read, ..) = reader.read_records(count, (most > 0).then_some(&mut levels), None, &mut found)?;
            if read != count {
                return broken(format!("a page of {read} values where {count} belong"));
            }
            let as_is = chunk.compression() == Compression::UNCOMPRESSED;
            let mut values = found.into_iter().map(|value| {
                let place = if as_is { input.place_of(value.data()) } else { None };
                (Some(value), place)
            });
            Ok(match most {
                0 => values.collect(),
                _ => levels
                    .iter()
                    .map(|&level| if level == most { values.next().unwrap_or_default() } else { (None, None) })
                    .collect(),
            })
        })
    }
}

/// Damaged files can make the crate panic; such a panic is a fault of the file.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    caught(work).unwrap_or_else(broken)
}
