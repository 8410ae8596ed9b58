//! Sparse files in layers: GNU's old header type `S`, and pax sparse 0.0, 0.1 and 1.0 (GNU tar manual, "Storing Sparse
//! Files"). Image-spec layer.md advises against them, but writers of layers on GNU tar produce them.

use std::io::Read;

use super::header::{BLOCK, Header, number};
use super::{Entry, Reader, TarError, pax};

/// The most pieces one file may have: their list takes 16 MiB.
const PIECES: usize = 1 << 20;

type Pieces = Vec<(u64, u64)>;

/// If the entry is a sparse file: its real name and size, and its pieces. May read the list from the entry's data.
pub fn apply<R: Read>(
    reader: &mut Reader<R>,
    header: &Header,
    extension: pax::Records,
    entry: &mut Entry,
) -> Result<(), TarError> {
    let (real_size, pieces) = if header.kind() == b'S' {
        old_gnu(reader, header)?
    } else if !extension.sparse.is_empty() {
        from_pax(reader, &extension, entry)?
    } else {
        return Ok(());
    };
    check(&pieces, real_size, reader.remaining).map_err(|rule| reader.error(rule))?;
    entry.size = real_size;
    entry.pieces = Some(pieces);
    Ok(())
}

/// Pieces are in order, inside the file, and make up the stored data exactly.
fn check(pieces: &Pieces, size: u64, stored: u64) -> Result<(), String> {
    let mut end = 0;
    let mut total = 0u64;
    for (offset, length) in pieces {
        let next = offset
            .checked_add(*length)
            .filter(|next| *offset >= end && *next <= size);
        end = next.ok_or("the pieces of a sparse file overlap or leave it")?;
        total += length;
    }
    match total == stored {
        true => Ok(()),
        false => Err("the pieces of a sparse file do not make up its data".into()),
    }
}

fn old_gnu<R: Read>(reader: &mut Reader<R>, header: &Header) -> Result<(u64, Pieces), TarError> {
    let mut pieces = Pieces::new();
    let block = header.bytes();
    let size = field(&block[483..495]).map_err(|rule| reader.error(rule))?;
    take(&mut pieces, &block[386..482]).map_err(|rule| reader.error(rule))?;
    let mut more = block[482] != 0;
    while more {
        let mut block = [0; BLOCK];
        if !reader.block(&mut block)? || pieces.len() > PIECES {
            return Err(reader.error("the list of a sparse file's pieces does not end"));
        }
        take(&mut pieces, &block[..504]).map_err(|rule| reader.error(rule))?;
        more = block[504] != 0;
    }
    Ok((size, pieces))
}

fn take(pieces: &mut Pieces, list: &[u8]) -> Result<(), String> {
    for piece in list.chunks_exact(24).take_while(|piece| piece[0] != 0) {
        pieces.push((field(&piece[..12])?, field(&piece[12..])?));
    }
    Ok(())
}

fn field(bytes: &[u8]) -> Result<u64, String> {
    u64::try_from(number(bytes)?).map_err(|_| "a piece of a sparse file is negative".into())
}

fn from_pax<R: Read>(
    reader: &mut Reader<R>,
    extension: &pax::Records,
    entry: &mut Entry,
) -> Result<(u64, Pieces), TarError> {
    let get = |key: &str| {
        extension
            .sparse
            .iter()
            .rfind(|(name, _)| name == key)
            .map(|(_, value)| value.as_slice())
    };
    let bad = |reader: &Reader<R>| reader.error("the description of a sparse file is not complete");
    let size = get("realsize")
        .or(get("size"))
        .and_then(pax::decimal)
        .ok_or_else(|| bad(reader))?;
    if let Some(name) = get("name") {
        if name.is_empty() || name.contains(&0) {
            return Err(bad(reader));
        }
        entry.path = name.to_vec();
    }
    let list: Option<Vec<u64>> = match (get("major"), get("map")) {
        (Some(b"1"), _) => return Ok((size, listed_in_data(reader)?)),
        (Some(b"0") | None, Some(map)) => {
            map.split(|byte| *byte == b',').map(pax::decimal).collect()
        }
        (Some(b"0") | None, None) => {
            let piece = |(name, _): &&(String, Vec<u8>)| name == "offset" || name == "numbytes";
            extension
                .sparse
                .iter()
                .filter(piece)
                .map(|(_, value)| pax::decimal(value))
                .collect()
        }
        _ => return Err(reader.error("its sparse format is unknown")),
    };
    let list = list
        .filter(|list| list.len() % 2 == 0)
        .ok_or_else(|| bad(reader))?;
    Ok((
        size,
        list.chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .collect(),
    ))
}

/// Version 1.0: decimal lines at the start of the data, filled up to a block.
fn listed_in_data<R: Read>(reader: &mut Reader<R>) -> Result<Pieces, TarError> {
    let mut text = Vec::new();
    let mut numbers: Vec<u64> = Vec::new();
    loop {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match reader.read_data(&mut block[filled..])? {
                0 => return Err(reader.error("the list of a sparse file's pieces does not end")),
                length => filled += length,
            }
        }
        text.extend_from_slice(&block);
        while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            let number = pax::decimal(&text[..end]);
            numbers.push(number.ok_or_else(|| {
                reader.error("the list of a sparse file's pieces is not numbers")
            })?);
            text.drain(..=end);
            if let Some(wanted) = numbers[0]
                .checked_mul(2)
                .filter(|wanted| *wanted / 2 <= PIECES as u64)
            {
                if numbers.len() as u64 == wanted + 1 {
                    return Ok(numbers[1..]
                        .chunks_exact(2)
                        .map(|pair| (pair[0], pair[1]))
                        .collect());
                }
            } else {
                return Err(reader.error("a sparse file has too many pieces"));
            }
        }
        if text.len() > BLOCK + 20 {
            return Err(reader.error("the list of a sparse file's pieces is not numbers"));
        }
    }
}
