//! Pages of a column chunk, unpacked. In: the chunk's pages as they lie in the file. Out: the same as the crate's own
//! reader gives. Apart, since Snappy, which nearly every file of images has, is unpacked here: straight into buffers
//! that are used again, where the crate makes and clears new memory for each page.

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::serialized_reader::SerializedPageReader;
use snap::raw::{Decoder, decompress_len};

use super::buffers::Buffers;
use super::input::Input;

/// Snappy's shortest code for most bytes is three bytes for 64, so a page that claims more than this many times its
/// size lies.
const MOST: usize = 22;

/// See the module.
pub struct Unpacked {
    pages: SerializedPageReader<Input>,
    /// None where the crate unpacks.
    snappy: Option<Decoder>,
    buffers: Arc<Buffers>,
}

impl Unpacked {
    /// The pages of a chunk of `rows` rows at these places.
    pub fn new(input: Arc<Input>, chunk: &ColumnChunkMetaData, rows: usize, table: Vec<PageLocation>) -> Result<Self> {
        let buffers = input.buffers.clone();
        let snappy = (chunk.compression() == Compression::SNAPPY).then(Decoder::new);
        let pages = if snappy.is_some() {
            let packed = chunk.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build()?;
            SerializedPageReader::new(input, &packed, rows, Some(table))?
        } else {
            SerializedPageReader::new(input, chunk, rows, Some(table))?
        };
        Ok(Self { pages, snappy, buffers })
    }

    fn unpack(&mut self, mut page: Page) -> Result<Page> {
        let Some(decoder) = &mut self.snappy else { return Ok(page) };
        let (bytes, levels) = match &mut page {
            Page::DataPage { buf, .. } | Page::DictionaryPage { buf, .. } => (buf, 0),
            Page::DataPageV2 { is_compressed: false, .. } => return Ok(page),
            // Levels come first and are not packed.
            Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
                (buf, *def_levels_byte_len as usize + *rep_levels_byte_len as usize)
            }
        };
        *bytes = snappy(decoder, &self.buffers, bytes, levels)?;
        Ok(page)
    }
}

fn snappy(decoder: &mut Decoder, buffers: &Arc<Buffers>, page: &Bytes, levels: usize) -> Result<Bytes> {
    let (Some(plain), Some(packed)) = (page.get(..levels), page.get(levels..)) else {
        return Err(ParquetError::EOF(format!("a page of {} bytes with {levels} of levels", page.len())));
    };
    // A page without values may hold nothing at all.
    let length = if packed.is_empty() { 0 } else { decompress_len(packed).map_err(snappy_error)? };
    if length > packed.len().saturating_mul(MOST) {
        return Err(ParquetError::General(format!("{} bytes of Snappy cannot hold {length}", packed.len())));
    }
    let mut into = buffers.take(levels + length);
    into[..levels].copy_from_slice(plain);
    if length > 0 {
        decoder.decompress(packed, &mut into[levels..]).map_err(snappy_error)?;
    }
    Ok(into.freeze())
}

fn snappy_error(error: snap::Error) -> ParquetError {
    ParquetError::General(error.to_string())
}

impl Iterator for Unpacked {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Unpacked {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.pages.get_next_page()?.map(|page| self.unpack(page)).transpose()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.pages.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> Result<Option<Page>> {
        self.pages.take_deferred_dictionary()?.map(|page| self.unpack(page)).transpose()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}
