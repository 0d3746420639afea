//! Parsers of values that several commands share.

/// An upper bound that only catches slips of the keyboard.
pub const MANY: usize = 1 << 30;

/// A parser of whole numbers from `least` to `most`.
pub fn count(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse::<usize>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        Ok(_) => Err(format!("it must be from {least} to {most}")),
        Err(_) => Err(format!("it must be a whole number from {least} to {most}")),
    }
}

/// A parser of finite numbers.
pub fn finite(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|number: &f32| number.is_finite())
        .ok_or_else(|| "it must be a number, e.g. 1.0".to_owned())
}

/// A parser of times: from a tenth of a second to a day.
pub fn seconds(text: &str) -> Result<f64, String> {
    let number = text
        .parse::<f64>()
        .ok()
        .filter(|number| (0.1..=86_400.0).contains(number));
    number.ok_or_else(|| "it must be a number of seconds from 0.1 to 86400".to_owned())
}
