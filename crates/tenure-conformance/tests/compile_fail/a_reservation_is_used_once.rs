use tenure::{Engine, LoadOptions, LoadPlan, Reservation, Text};

fn twice(engine: &Engine, a: LoadPlan<Text>, b: LoadPlan<Text>, reservation: Reservation) {
    let _ = engine.load(a, reservation, &LoadOptions::default());
    let _ = engine.load(b, reservation, &LoadOptions::default());
}

fn main() {}
