//! Porter's stemmer (Program 14.3, 1980) with the extensions of NLTK, which `rouge-score` uses. Words are lower case letters
//! and digits; a digit counts as a consonant.

/// Words whose stem no rule finds.
const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// Step 2, for stems of a measure above 0: of the suffixes that a word ends with, the first one decides.
const STEP_2: [(&str, &str); 21] = [
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
];

/// Step 3, for stems of a measure above 0.
const STEP_3: [(&str, &str); 7] = [
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
];

/// Step 4, for stems of a measure above 1; `ion` only after s or t.
const STEP_4: [&str; 19] = [
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate", "iti",
    "ous", "ive", "ize",
];

/// The stem of a word, which is ASCII in lower case.
pub fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).to_owned();
    }
    let mut word = word.to_owned();
    if word.len() > 2 {
        plural(&mut word);
        past(&mut word);
        // Step 1c: y after a consonant, unless that is all there is.
        if word
            .strip_suffix('y')
            .is_some_and(|stem| stem.len() > 1 && ends_in_consonant(stem))
        {
            replace(&mut word, 1, "i");
        }
        step_2(&mut word);
        if let Some((suffix, to)) = STEP_3.iter().find(|(suffix, _)| word.ends_with(suffix)) {
            if measure(without(&word, suffix)) > 0 {
                replace(&mut word, suffix.len(), to);
            }
        }
        if let Some(suffix) = STEP_4.iter().find(|suffix| word.ends_with(**suffix)) {
            let stem = without(&word, suffix);
            if measure(stem) > 1 && (*suffix != "ion" || stem.ends_with(['s', 't'])) {
                word.truncate(stem.len());
            }
        }
        step_5(&mut word);
    }
    word
}

/// Step 1a.
fn plural(word: &mut String) {
    if word.ends_with("ies") {
        let cut = if word.len() == 4 { 1 } else { 2 };
        word.truncate(word.len() - cut);
    } else if word.ends_with("sses") {
        word.truncate(word.len() - 2);
    } else if word.ends_with('s') && !word.ends_with("ss") {
        word.truncate(word.len() - 1);
    }
}

/// Step 1b: past tenses and participles.
fn past(word: &mut String) {
    if word.ends_with("ied") {
        let cut = if word.len() == 4 { 1 } else { 2 };
        word.truncate(word.len() - cut);
        return;
    }
    if let Some(stem) = word.strip_suffix("eed") {
        if measure(stem) > 0 {
            word.truncate(word.len() - 1);
        }
        return;
    }
    let has_vowel = |stem: &&str| consonants(stem).contains(&false);
    let stem = ["ed", "ing"]
        .iter()
        .find_map(|suffix| word.strip_suffix(suffix).filter(has_vowel));
    let Some(stem) = stem.map(str::to_owned) else { return };
    *word = stem;
    if ["at", "bl", "iz"].iter().any(|end| word.ends_with(end)) {
        word.push('e');
    } else if ends_in_double_consonant(word) {
        if !word.ends_with(['l', 's', 'z']) {
            word.pop();
        }
    } else if measure(word) == 1 && ends_short(word) {
        word.push('e');
    }
}

fn step_2(word: &mut String) {
    if word.strip_suffix("alli").is_some_and(|stem| measure(stem) > 0) {
        word.truncate(word.len() - 2);
        return step_2(word);
    }
    if let Some((suffix, to)) = STEP_2.iter().find(|(suffix, _)| word.ends_with(suffix)) {
        if measure(without(word, suffix)) > 0 {
            replace(word, suffix.len(), to);
        }
    } else if word.ends_with("logi") && measure(without(word, "ogi")) > 0 {
        word.pop();
    }
}

/// The last e, the last of two l.
fn step_5(word: &mut String) {
    if let Some(stem) = word.strip_suffix('e') {
        if measure(stem) > 1 || measure(stem) == 1 && !ends_short(stem) {
            word.pop();
        }
    }
    if word.ends_with("ll") && measure(&word[..word.len() - 1]) > 1 {
        word.pop();
    }
}

fn without<'a>(word: &'a str, suffix: &str) -> &'a str {
    &word[..word.len() - suffix.len()]
}

fn replace(word: &mut String, last: usize, to: &str) {
    word.truncate(word.len() - last);
    word.push_str(to);
}

/// Which letters are consonants; y is one at the start and after a vowel.
fn consonants(word: &str) -> Vec<bool> {
    let mut flags: Vec<bool> = Vec::with_capacity(word.len());
    for c in word.bytes() {
        flags.push(match c {
            b'a' | b'e' | b'i' | b'o' | b'u' => false,
            b'y' => flags.last().is_none_or(|before| !before),
            _ => true,
        });
    }
    flags
}

/// How often a consonant follows a vowel.
fn measure(word: &str) -> usize {
    consonants(word).windows(2).filter(|pair| !pair[0] && pair[1]).count()
}

fn ends_in_consonant(word: &str) -> bool {
    consonants(word).last() == Some(&true)
}

fn ends_in_double_consonant(word: &str) -> bool {
    matches!(word.as_bytes(), [.., a, b] if a == b) && ends_in_consonant(word)
}

/// Consonant, vowel, consonant other than w, x, y; or a vowel and a consonant, and no more.
fn ends_short(word: &str) -> bool {
    match consonants(word)[..] {
        [false, true] => true,
        [.., true, false, true] => !word.ends_with(['w', 'x', 'y']),
        _ => false,
    }
}
