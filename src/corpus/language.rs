//! Language codes (`fra_Latn`), and the closest ones to a mistyped code.

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

/// Levenshtein's distance: insertions, deletions and substitutions of characters, case ignored.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.to_lowercase().chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, d) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("FRA", "fra", 0),
        ] {
            assert_eq!(edit_distance(a, b), d, "{a} {b}");
        }
    }

    #[test]
    fn the_closest_come_first() {
        let codes = ["arb_Arab", "deu_Latn", "eng_Latn", "fra_Latn", "fur_Latn", "zho_Hans"];
        assert_eq!(closest("fre_Latn", codes.into_iter(), 2), ["fra_Latn", "fur_Latn"]);
        assert_eq!(closest("fr", codes.into_iter(), 1), ["fra_Latn"]);
        assert_eq!(closest("FRA_LATN", codes.into_iter(), 1), ["fra_Latn"]);
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
