//! Paths as text that loses nothing: what is not UTF-8 becomes characters that no name has by chance.
//!
//! A byte that is no part of valid UTF-8 is written as the character U+10FE00 + the byte, of a private plane. A name that
//! really holds such a character has its bytes written that way too, so that every name has one text, and the text one
//! name.

const BASE: u32 = 0x0010_FE00;

fn escaped(byte: u8) -> char {
    char::from_u32(BASE + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn byte_of(character: char) -> Option<u8> {
    u8::try_from(u32::from(character).checked_sub(BASE)?).ok().filter(|byte| *byte >= 0x80)
}

/// The text of a name, and whether it needed escapes.
pub fn encode(name: &[u8]) -> (String, bool) {
    let mut text = String::with_capacity(name.len());
    let mut escapes = false;
    for chunk in name.utf8_chunks() {
        for character in chunk.valid().chars() {
            if byte_of(character).is_none() {
                text.push(character);
                continue;
            }
            escapes = true;
            text.extend(character.encode_utf8(&mut [0; 4]).bytes().map(escaped));
        }
        escapes |= !chunk.invalid().is_empty();
        text.extend(chunk.invalid().iter().copied().map(escaped));
    }
    (text, escapes)
}

/// The bytes that a text stands for.
pub fn decode(text: &str) -> Vec<u8> {
    let mut name = Vec::with_capacity(text.len());
    for character in text.chars() {
        match byte_of(character) {
            Some(byte) => name.push(byte),
            None => name.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    name
}

/// For a person: escapes as `\xNN`, and what would steer a terminal or turn its text around made visible.
pub fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        let turns =
            matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match byte_of(character) {
            Some(byte) => shown.push_str(&format!("\\x{byte:02x}")),
            None if character.is_control() || turns => shown.extend(character.escape_unicode()),
            None => shown.push(character),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_that_is_not_utf8_is_flagged_and_shown() {
        let (text, escapes) = encode(b"a\xff\xfe b");
        assert!(escapes);
        assert_eq!(shown(&text), r"a\xff\xfe b");
        assert_eq!(encode("grün".as_bytes()), ("grün".to_owned(), false));
        assert_eq!(shown("a\u{202e}b\n"), r"a\u{202e}b\u{a}");
    }

    proptest! {
        #[test]
        fn every_name_has_a_text_of_its_own(name in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(decode(&encode(&name).0), name);
        }
        #[test]
        fn private_characters_keep_their_bytes(name in "[\u{10FE70}-\u{10FF10}a]{0,8}") {
            prop_assert_eq!(decode(&encode(name.as_bytes()).0), name.as_bytes());
        }
    }
}
