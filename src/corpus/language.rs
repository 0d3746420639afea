//! Language codes (`fra_Latn`), and the closest ones to a mistyped code.

use crate::metrics::edit_distance::levenshtein;

/// Whether a token has the form of a FLORES-200 code: three letters of a language, four of a script.
pub(crate) fn is_code(token: &str) -> bool {
    let b = token.as_bytes();
    b.len() == 8
        && b[..3].iter().all(u8::is_ascii_lowercase)
        && b[3] == b'_'
        && b[4].is_ascii_uppercase()
        && b[5..].iter().all(u8::is_ascii_lowercase)
}

/// The `count` codes closest to `typed`: by edit distance, then by the longer common beginning, then by name.
pub(crate) fn closest<'a>(typed: &str, codes: impl Iterator<Item = &'a str>, count: usize) -> Vec<&'a str> {
    let mut ranked: Vec<_> = codes
        .map(|code| {
            let shared = typed.chars().zip(code.chars()).take_while(|(a, b)| a == b).count();
            (edit_distance(typed, code), std::cmp::Reverse(shared), code)
        })
        .collect();
    ranked.sort();
    ranked.into_iter().take(count).map(|(_, _, code)| code).collect()
}

/// Edits that make one code of the other, case ignored, of the beginning of what was typed.
fn edit_distance(typed: &str, code: &str) -> usize {
    let chars = |text: &str| -> Vec<char> { text.to_lowercase().chars().take(64).collect() };
    levenshtein(&chars(typed), &chars(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_come_first() {
        let codes = ["arb_Arab", "deu_Latn", "eng_Latn", "fra_Latn", "fur_Latn", "zho_Hans"];
        assert_eq!(closest("fre_Latn", codes.into_iter(), 2), ["fra_Latn", "fur_Latn"]);
        assert_eq!(closest("fr", codes.into_iter(), 1), ["fra_Latn"]);
        assert_eq!(closest("FRA_LATN", codes.into_iter(), 1), ["fra_Latn"]);
        assert_eq!(edit_distance("FRA", "fra"), 0);
        assert_eq!(closest("x", std::iter::empty(), 3), Vec::<&str>::new());
    }

    #[test]
    fn codes_have_one_form() {
        for (token, good) in [
            ("fra_Latn", true),
            ("<mask>", false),
            ("fr", false),
            ("fra_latn", false),
            ("fra-Latn", false),
            ("été_La", false),
        ] {
            assert_eq!(is_code(token), good, "{token}");
        }
    }
}
