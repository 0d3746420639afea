//! What is read of a `.model`: a protocol buffer, `sentencepiece_model.proto`.

/// A `.model`.
pub struct File {
    pub pieces: Vec<Piece>,
    pub algorithm: Algorithm,
    pub byte_fallback: bool,
    pub normalizer: Rules,
}

/// A piece.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: Kind,
}

/// What a piece is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// One like most.
    #[default]
    Normal,
    /// Stands for what is unknown, for a byte, or for nothing that texts hold.
    Reserved,
    /// Always a piece of its own.
    UserDefined,
    /// Never a result.
    Unused,
}

impl Kind {
    /// Whether a text may hold it.
    pub fn is_in_texts(self) -> bool {
        self != Kind::Reserved
    }
}

/// How a text is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The likeliest pieces.
    Unigram,
    /// The best pairs merged, one after the other.
    Bpe,
}

/// How a text is made ready.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// What characters become: a trie and texts behind it.
    pub map: Vec<u8>,
    pub dummy_prefix: bool,
    pub single_spaces: bool,
    pub escape_spaces: bool,
    /// The dummy stands at the end.
    pub suffix: bool,
}

/// A field of a message.
enum Field<'a> {
    Number(u64),
    Float(f32),
    Bytes(&'a [u8]),
}

impl Field<'_> {
    fn truth(&self) -> bool {
        matches!(self, Field::Number(1..))
    }
}

/// Reads a `.model`.
pub fn read(bytes: &[u8]) -> Result<File, String> {
    let mut file = File {
        pieces: Vec::new(),
        algorithm: Algorithm::Unigram,
        byte_fallback: false,
        normalizer: Rules {
            map: Vec::new(),
            dummy_prefix: true,
            single_spaces: true,
            escape_spaces: true,
            suffix: false,
        },
    };
    let mut has_specs = [false; 2];
    fields(bytes, &mut |number, field| {
        match (number, field) {
            (1, Field::Bytes(piece)) => file.pieces.push(self::piece(piece)?),
            (2, Field::Bytes(spec)) => {
                has_specs[0] = true;
                trainer(spec, &mut file)?;
            }
            (3, Field::Bytes(spec)) => {
                has_specs[1] = true;
                normalizer(spec, &mut file.normalizer)?;
            }
            _ => {}
        }
        Ok(())
    })?;
    match (has_specs, file.pieces.len()) {
        ([true, true], 1..) => Ok(file),
        _ => Err("it is no sentencepiece model".to_owned()),
    }
}

fn piece(bytes: &[u8]) -> Result<Piece, String> {
    let mut piece = Piece::default();
    fields(bytes, &mut |number, field| {
        match (number, field) {
            (1, Field::Bytes(text)) => {
                piece.text = String::from_utf8(text.to_vec()).map_err(|_| "a piece is no UTF-8")?
            }
            (2, Field::Float(score)) => piece.score = score,
            (3, Field::Number(kind)) => {
                piece.kind = match kind {
                    1 => Kind::Normal,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    _ => Kind::Reserved,
                };
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(piece)
}

fn trainer(bytes: &[u8], file: &mut File) -> Result<(), String> {
    fields(bytes, &mut |number, field| {
        match (number, &field) {
            (3, Field::Number(1)) => file.algorithm = Algorithm::Unigram,
            (3, Field::Number(2)) => file.algorithm = Algorithm::Bpe,
            (3, Field::Number(_)) => {
                return Err("its pieces are whole words or characters: give a unigram or BPE model".into())
            }
            (24, field) => file.normalizer.suffix = field.truth(),
            (35, field) => file.byte_fallback = field.truth(),
            _ => {}
        }
        Ok(())
    })
}

fn normalizer(bytes: &[u8], rules: &mut Rules) -> Result<(), String> {
    fields(bytes, &mut |number, field| {
        match (number, &field) {
            (2, Field::Bytes(map)) => rules.map = map.to_vec(),
            (3, field) => rules.dummy_prefix = field.truth(),
            (4, field) => rules.single_spaces = field.truth(),
            (5, field) => rules.escape_spaces = field.truth(),
            _ => {}
        }
        Ok(())
    })
}

/// Gives each field of a message to `take`, by its number.
fn fields<'a>(mut bytes: &'a [u8], take: &mut dyn FnMut(u64, Field<'a>) -> Result<(), String>) -> Result<(), String> {
    let cut = || "it is cut off, or no sentencepiece model".to_owned();
    while !bytes.is_empty() {
        let key = varint(&mut bytes).ok_or_else(cut)?;
        let field = match key & 7 {
            1 => part(&mut bytes, 8).map(|_| Field::Number(0)),
            5 => part(&mut bytes, 4).map(|part| Field::Float(f32::from_le_bytes(part.try_into().unwrap_or_default()))),
            0 => varint(&mut bytes).map(Field::Number),
            2 => {
                let length = varint(&mut bytes).and_then(|length| usize::try_from(length).ok());
                length.and_then(|length| part(&mut bytes, length)).map(Field::Bytes)
            }
            _ => None,
        };
        take(key >> 3, field.ok_or_else(cut)?)?;
    }
    Ok(())
}

/// The next bytes.
fn part<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (part, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(part)
}

/// A number of seven bits a byte, the lowest first.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
