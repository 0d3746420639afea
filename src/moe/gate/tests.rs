use super::*;
use crate::device::exp;

/// A token's experts and weights, in the gate's order.
type Route = Vec<(u32, f64)>;

fn route(rule: &Rule, logits: &[f32], experts: usize) -> Result<Routes> {
    let mut routes = Routes::default();
    rule.route(&Cpu::new(1)?, logits, experts, &mut routes)?;
    Ok(routes)
}

/// Numbers of `values` different ones, from -5 to 5: the fewer, the more ties.
fn numbers(n: usize, values: u64, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % values) as f32 / values as f32 * 10.0 - 5.0
    };
    (0..n).map(|_| next()).collect()
}

/// All places, those of the largest values first, of equal ones the lower first.
fn order(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order
}

/// `values` with those outside the best groups replaced; a group is worth the sum of its `of` best.
fn masked(values: &[f64], groups: Groups, of: usize, by: f64) -> Vec<f64> {
    let size = values.len() / groups.count;
    let worth = |group: &[f64]| order(group).iter().take(of).map(|&i| group[i]).sum();
    let worths: Vec<f64> = values.chunks(size).map(worth).collect();
    let kept = &order(&worths)[..groups.kept];
    let value = |(e, &v)| if kept.contains(&(e / size)) { v } else { by };
    values.iter().enumerate().map(value).collect()
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|l| (l - most).exp()).sum();
    logits.iter().map(|l| (l - most).exp() / total).collect()
}

/// The rules as their papers and reference implementations write them, in float64.
fn slowly(rule: &Rule, logits: &[f32]) -> Route {
    let logits: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
    let scaled = |chosen: &[usize], p: &[f64], total: f64, factor: f32| {
        let weight = |&e: &usize| (e as u32, p[e] / total * f64::from(factor));
        chosen.iter().map(weight).collect()
    };
    match rule {
        Rule::Softmax {
            top_k,
            groups,
            renormalise,
            factor,
        } => {
            let p = softmax(&logits);
            let choice = groups.map_or(p.clone(), |groups| masked(&p, groups, 1, 0.0));
            let chosen = &order(&choice)[..*top_k];
            let total = if *renormalise {
                chosen.iter().map(|&e| p[e]).sum()
            } else {
                1.0
            };
            scaled(chosen, &p, total, *factor)
        }
        Rule::Sigmoid {
            top_k,
            groups,
            bias,
            renormalise,
            factor,
        } => {
            let s: Vec<f64> = logits.iter().map(|l| 1.0 / (1.0 + (-l).exp())).collect();
            let choice: Vec<f64> = s.iter().zip(bias).map(|(s, &b)| s + f64::from(b)).collect();
            let choice = groups.map_or(choice.clone(), |groups| masked(&choice, groups, 2, f64::NEG_INFINITY));
            let chosen = &order(&choice)[..*top_k];
            let total = if *renormalise {
                chosen.iter().map(|&e| s[e]).sum::<f64>() + 1e-20
            } else {
                1.0
            };
            scaled(chosen, &s, total, *factor)
        }
        Rule::SparseMixer { jitter } => {
            let mut left = logits.clone();
            let mut pick = || {
                let best = order(&left)[0];
                let most = left[best];
                let far = |s: f64| (most - s) / s.abs().max(most) > 2.0 * f64::from(*jitter);
                let close = left
                    .iter()
                    .zip(&logits)
                    .map(|(&l, &s)| if far(s) { f64::NEG_INFINITY } else { l });
                let p = softmax(&close.collect::<Vec<_>>())[best];
                left[best] = f64::NEG_INFINITY;
                (best as u32, p)
            };
            vec![pick(), pick()]
        }
    }
}

fn agrees(rule: &Rule, logits: &[f32], experts: usize) {
    let routes = route(rule, logits, experts).unwrap();
    assert_eq!(routes.top_k, rule.top_k());
    let found: Vec<(u32, f32)> = routes.experts.iter().copied().zip(routes.weights).collect();
    assert_eq!(found.len(), logits.len() / experts * routes.top_k);
    for (row, found) in logits.chunks(experts).zip(found.chunks(routes.top_k)) {
        let expected = slowly(rule, row);
        let same = |(a, b): (&(u32, f32), &(u32, f64))| a.0 == b.0 && (f64::from(a.1) - b.1).abs() <= 3e-6 * b.1;
        assert!(
            found.iter().zip(&expected).all(same),
            "{rule:?}\n{row:?}\n{found:?}, expected {expected:?}"
        );
    }
}

/// Numbers of experts, of groups, of groups kept and of experts a token.
const SHAPES: [[usize; 4]; 11] = [
    [2, 1, 1, 2],
    [4, 1, 1, 1],
    [5, 1, 1, 3],
    [8, 8, 2, 2],
    [8, 2, 2, 8],
    [8, 4, 4, 3],
    [16, 4, 1, 4],
    [64, 1, 1, 6],
    [128, 4, 3, 4],
    [160, 8, 3, 6],
    [512, 8, 4, 22],
];

#[test]
fn softmax_over_all_agrees_with_the_rule_written_out() {
    for [experts, count, kept, top_k] in SHAPES {
        for values in [3, 40, 1 << 20] {
            let logits = numbers(9 * experts, values, experts as u64 + values);
            for (renormalise, factor) in [(true, 1.0), (false, 1.0), (false, 16.0), (true, 2.5)] {
                for groups in [None, Some(Groups { count, kept })] {
                    let rule = Rule::Softmax {
                        top_k,
                        groups,
                        renormalise,
                        factor,
                    };
                    agrees(&rule, &logits, experts);
                }
            }
        }
    }
}

#[test]
fn sigmoids_with_a_bias_agree_with_the_rule_written_out() {
    for [experts, count, kept, top_k] in SHAPES {
        for values in [3, 40, 1 << 20] {
            let logits = numbers(9 * experts, values, 3 * experts as u64 + values);
            let uneven: Vec<f32> = numbers(experts, 4, 5).iter().map(|b| 0.1 * b).collect();
            for bias in [vec![0.0; experts], uneven] {
                for (renormalise, factor) in [(true, 2.5), (false, 1.0)] {
                    for groups in [None, Some(Groups { count, kept })] {
                        let rule = Rule::Sigmoid {
                            top_k,
                            groups,
                            bias: bias.clone(),
                            renormalise,
                            factor,
                        };
                        agrees(&rule, &logits, experts);
                    }
                }
            }
        }
    }
}

#[test]
fn sparsemixer_agrees_with_the_rule_written_out() {
    for [experts, ..] in SHAPES {
        for values in [3, 10, 40, 1 << 20] {
            for jitter in [0.0, 0.01, 0.2, 3.0] {
                let logits = numbers(30 * experts, values, 7 * experts as u64 + values);
                agrees(&Rule::SparseMixer { jitter }, &logits, experts);
            }
        }
    }
    // Only the two best are close to each other, and nothing is close to the second.
    let weights = route(&Rule::SparseMixer { jitter: 0.01 }, &[1.0, 5.0, 4.95, -3.0], 4)
        .unwrap()
        .weights;
    let odds = exp(4.95 - 5.0);
    assert_eq!(weights, [1.0 / (1.0 + odds), 1.0]);
}

#[test]
fn the_bias_moves_the_choice_but_not_the_weights() {
    let rule = Rule::Sigmoid {
        top_k: 2,
        groups: None,
        bias: vec![0.0, 0.0, 0.9],
        renormalise: false,
        factor: 1.0,
    };
    let routes = route(&rule, &[0.0, 1.0, -2.0], 3).unwrap();
    assert_eq!(routes.experts, [2, 1]);
    assert_eq!(routes.weights[0], 1.0 / (1.0 + exp(2.0)));
}

#[test]
fn top_two_are_weighted_by_their_odds() {
    // To the last bit: results of NLLB-MoE rest on it.
    for experts in [2, 3, 16, 128] {
        let logits = numbers(200 * experts, 1 << 20, experts as u64);
        let routes = route(&Rule::top(2), &logits, experts).unwrap();
        let pairs = routes.experts.chunks(2).zip(routes.weights.chunks(2));
        for (row, (chosen, weights)) in logits.chunks(experts).zip(pairs) {
            let odds = exp(row[chosen[1] as usize] - row[chosen[0] as usize]);
            assert_eq!(weights, [1.0 / (1.0 + odds), odds / (1.0 + odds)]);
        }
    }
}

#[test]
fn the_softmax_of_the_best_logits_is_the_best_of_the_softmax() {
    // GPT-OSS and Granite choose first.
    for [experts, _, _, top_k] in SHAPES {
        let logits = numbers(20 * experts, 1 << 20, 11 + experts as u64);
        let routes = route(&Rule::top(top_k), &logits, experts).unwrap();
        let found = routes.experts.chunks(top_k).zip(routes.weights.chunks(top_k));
        for (row, (chosen, weights)) in logits.chunks(experts).zip(found) {
            let row: Vec<f64> = row.iter().map(|&l| f64::from(l)).collect();
            let best = &order(&row)[..top_k];
            let expected = softmax(&best.iter().map(|&e| row[e]).collect::<Vec<_>>());
            assert!(chosen.iter().zip(best).all(|(&e, &b)| e as usize == b));
            assert!(weights
                .iter()
                .zip(expected)
                .all(|(&w, p)| (f64::from(w) - p).abs() < 1e-6));
        }
    }
}

#[test]
fn a_token_has_the_same_route_alone_and_on_any_number_of_threads() {
    let [experts, count, kept, top_k] = SHAPES[9];
    let logits = numbers(1000 * experts, 1 << 20, 1);
    let groups = Some(Groups { count, kept });
    let rules = [
        Rule::Softmax {
            top_k,
            groups,
            renormalise: false,
            factor: 16.0,
        },
        Rule::Sigmoid {
            top_k,
            groups,
            bias: numbers(experts, 1 << 20, 2),
            renormalise: true,
            factor: 2.5,
        },
        Rule::SparseMixer { jitter: 0.1 },
    ];
    for rule in rules {
        let all = route(&rule, &logits, experts).unwrap();
        let mut routes = Routes::default();
        for threads in [2, 3] {
            rule.route(&Cpu::new(threads).unwrap(), &logits, experts, &mut routes)
                .unwrap();
            assert_eq!(routes, all, "{threads} threads");
        }
        for t in [0, 1, 500, 999] {
            let alone = route(&rule, &logits[t * experts..][..experts], experts).unwrap();
            assert_eq!(alone.experts, all.experts[t * all.top_k..][..all.top_k]);
            assert_eq!(alone.weights, all.weights[t * all.top_k..][..all.top_k]);
        }
    }
}

#[test]
fn ties_go_to_the_lower_expert() {
    let rule = Rule::top(2);
    assert_eq!(route(&rule, &[1.0, 3.0, 3.0, 3.0], 4).unwrap().experts, [1, 2]);
    assert_eq!(route(&rule, &[0.0, 0.0, 0.0], 3).unwrap().experts, [0, 1]);
    assert_eq!(route(&rule, &[0.0, 0.0], 2).unwrap().weights, [0.5, 0.5]);
    let one_hot = [f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY];
    assert_eq!(route(&rule, &one_hot, 3).unwrap().weights, [1.0, 0.0]);
    assert!(route(&rule, &[], 4).unwrap().experts.is_empty());
}

#[test]
fn logits_that_leave_no_choice_are_an_error() {
    let of_groups = Some(Groups { count: 2, kept: 1 });
    let softmax = |groups| Rule::Softmax {
        top_k: 1,
        groups,
        renormalise: false,
        factor: 1.0,
    };
    let sigmoid = |groups| Rule::Sigmoid {
        top_k: 1,
        groups,
        bias: vec![0.5, 0.0, 0.0, 0.0],
        renormalise: true,
        factor: 1.0,
    };
    let rules = [
        Rule::top(2),
        softmax(None),
        softmax(of_groups),
        sigmoid(None),
        sigmoid(of_groups),
        Rule::SparseMixer { jitter: 0.01 },
    ];
    let mut routes = Routes::default();
    let cpu = Cpu::new(2).unwrap();
    for rule in rules {
        for expert in 0..4 {
            // Its own row among others, in a block that is not the first.
            let mut logits = numbers(4 * 300, 1 << 20, 3);
            logits[4 * 200 + expert] = f32::NAN;
            let error = rule.route(&cpu, &logits, 4, &mut routes).unwrap_err().to_string();
            assert!(
                error.contains("NaN") && error.contains(&format!("expert {expert})")),
                "{error}"
            );
            assert!(routes.experts.is_empty() && routes.weights.is_empty());
        }
        if !matches!(rule, Rule::Sigmoid { .. }) {
            let error = route(&rule, &[0.0, 1.0, f32::INFINITY, 2.0], 4)
                .unwrap_err()
                .to_string();
            assert!(error.contains("inf") && error.contains("expert 2)"), "{error}");
            assert!(route(&rule, &[f32::NEG_INFINITY; 4], 4).is_err());
        }
    }
}
