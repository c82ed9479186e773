-- The rules that are live for the tenant `demo`. The three are herbal teas of the demo shop: artichoke, ginger, chrysanthemum.
return {
    { file = "promotions/third_unit_half_price.lua", priority = 100,
        config = { skus = { "DEMO-027", "DEMO-028", "DEMO-029" }, label = "Third herbal tea half price" } },
    { file = "tax/viet_nam.lua", config = { standard_ppm = 100000, class_ppm = { books = 50000 } } },
}
