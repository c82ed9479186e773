-- What the demo shop sells: categories, tags and a hundred products with Vietnamese and English names.
--
-- A product is { slug, Vietnamese name, English name, price in VND, weight in grams, tags, axes, extra }. Axes are
-- { name, { value, added price }, ... }: the variants are all combinations. A product without axes has no variants.
-- The four of the acceptance walk (Oolong, Jasmine, Lotus and Mug) have none, and no promotion of the seed touches them.
local M = {}

M.tags = { { "new", "Mới" }, { "bestseller", "Bán chạy" }, { "gift", "Quà tặng" }, { "handmade", "Thủ công" }, { "organic", "Hữu cơ" },
    { "local", "Đặc sản" }, { "flagship", "Cao cấp" } }

-- { slug, name, description, parent slug }
M.categories = {
    { "electronics", "Điện tử", "Electronics" },
    { "phones", "Điện thoại", "Phones", "electronics" },
    { "laptops", "Máy tính và phụ kiện", "Laptops and accessories", "electronics" },
    { "drinks", "Đồ uống", "Drinks" },
    { "tea", "Trà", "Tea", "drinks" },
    { "coffee", "Cà phê", "Coffee", "drinks" },
    { "books", "Sách", "Books" },
    { "home", "Nhà cửa", "Home" },
    { "ceramics", "Gốm sứ", "Ceramics", "home" },
    { "crafts", "Thủ công mỹ nghệ", "Crafts", "home" },
    { "fashion", "Thời trang", "Fashion" },
    { "food", "Thực phẩm", "Food" },
}

local STORAGE = { "Storage", { "128GB", 0 }, { "256GB", 2500000 }, { "512GB", 6000000 } }
local COLOR = { "Color", { "Black", 0 }, { "Titanium", 0 } }
local MEMORY = { "Memory", { "16GB", 0 }, { "32GB", 4500000 } }
local WEIGHT = { "Weight", { "100g", 0 }, { "250g", 110000 }, { "500g", 260000 } }
local BAG = { "Weight", { "250g", 0 }, { "500g", 95000 }, { "1kg", 240000 } }
local GRIND = { "Grind", { "Whole bean", 0 }, { "Ground", 0 } }
local COVER = { "Cover", { "Paperback", 0 }, { "Hardcover", 60000 } }
local SIZE = { "Size", { "S", 0 }, { "M", 0 }, { "L", 0 }, { "XL", 20000 } }
local GLAZE = { "Glaze", { "Celadon", 0 }, { "Cobalt", 15000 }, { "Ivory", 0 } }
local SET = { "Set", { "Single", 0 }, { "Set of 4", 420000 } }

M.products = {
    phones = {
        { "aurora-x1", "Điện thoại Aurora X1", "Aurora X1 phone", 24990000, 210, { "flagship", "new" }, { STORAGE, COLOR } },
        { "aurora-x1-mini", "Điện thoại Aurora X1 Mini", "Aurora X1 Mini phone", 19990000, 165, { "new" }, { STORAGE } },
        { "lotus-s24", "Điện thoại Lotus S24", "Lotus S24 phone", 21490000, 196, { "flagship" }, { STORAGE, COLOR } },
        { "lotus-a15", "Điện thoại Lotus A15", "Lotus A15 phone", 6490000, 200, { "bestseller" }, { COLOR } },
        { "redriver-note", "Điện thoại Sông Hồng Note", "Red River Note phone", 5290000, 205, { "bestseller" }, { STORAGE } },
        { "mekong-5g", "Điện thoại Mê Kông 5G", "Mekong 5G phone", 8990000, 198, {}, { COLOR } },
        { "halong-fold", "Điện thoại gập Hạ Long", "Ha Long Fold phone", 39990000, 263, { "flagship", "new" }, { STORAGE } },
        { "fanxipan-rugged", "Điện thoại siêu bền Fansipan", "Fansipan rugged phone", 7490000, 310, {}, { COLOR } },
        { "senior-easy", "Điện thoại người cao tuổi Easy", "Easy phone for seniors", 890000, 120, { "gift" } },
        { "aurora-lite", "Điện thoại Aurora Lite", "Aurora Lite phone", 4290000, 190, {}, { COLOR } },
    },
    laptops = {
        { "lotusbook-14", "Laptop Lotus Book 14", "Lotus Book 14 laptop", 22990000, 1350, { "bestseller" }, { MEMORY } },
        { "lotusbook-16-pro", "Laptop Lotus Book 16 Pro", "Lotus Book 16 Pro laptop", 42990000, 1950, { "flagship" }, { MEMORY } },
        { "mekong-gaming-15", "Laptop chơi game Mê Kông 15", "Mekong 15 gaming laptop", 31990000, 2300, { "new" }, { MEMORY } },
        { "usb-c-hub", "Bộ chia USB-C 7 cổng", "7-port USB-C hub", 690000, 110, {} },
        { "mechanical-keyboard", "Bàn phím cơ 75%", "75% mechanical keyboard", 1590000, 900, { "gift" },
            { { "Switch", { "Red", 0 }, { "Brown", 0 }, { "Blue", 0 } } } },
        { "wireless-mouse", "Chuột không dây", "Wireless mouse", 450000, 95, { "bestseller" },
            { { "Color", { "Black", 0 }, { "White", 0 } } } },
        { "noise-cancelling-headphones", "Tai nghe chống ồn", "Noise-cancelling headphones", 4990000, 260, { "gift" }, { COLOR } },
        { "true-wireless-earbuds", "Tai nghe không dây", "True wireless earbuds", 1290000, 55, { "bestseller" } },
        { "power-bank-20000", "Pin dự phòng 20.000 mAh", "20,000 mAh power bank", 790000, 410, {} },
        { "ssd-external-1tb", "Ổ cứng SSD di động", "Portable SSD", 2290000, 60, {}, { { "Capacity", { "1TB", 0 }, { "2TB", 1700000 } } } },
    },
    tea = {
        { "oolong", "Trà ô long", "Oolong", 120000, 100, { "bestseller", "local" } },
        { "jasmine", "Trà lài", "Jasmine", 90000, 100, { "local" } },
        { "lotus", "Trà sen", "Lotus", 150000, 100, { "gift", "local" } },
        { "green-thai-nguyen", "Trà xanh Thái Nguyên", "Thai Nguyen green tea", 110000, 100, { "local", "bestseller" }, { WEIGHT } },
        { "shan-tuyet", "Trà Shan tuyết cổ thụ", "Ancient Shan snow tea", 320000, 100, { "organic", "gift" }, { WEIGHT } },
        { "black-moc-chau", "Hồng trà Mộc Châu", "Moc Chau black tea", 135000, 100, { "local" }, { WEIGHT } },
        { "artichoke", "Trà atisô Đà Lạt", "Da Lat artichoke tea", 75000, 200, { "local" } },
        { "ginger", "Trà gừng", "Ginger tea", 65000, 180, {} },
        { "chrysanthemum", "Trà hoa cúc", "Chrysanthemum tea", 98000, 80, { "organic" } },
        { "matcha", "Bột trà xanh", "Matcha powder", 210000, 100, { "organic", "new" }, { WEIGHT } },
    },
    coffee = {
        { "robusta-dak-lak", "Cà phê Robusta Đắk Lắk", "Dak Lak Robusta coffee", 85000, 250, { "bestseller", "local" }, { BAG, GRIND } },
        { "arabica-cau-dat", "Cà phê Arabica Cầu Đất", "Cau Dat Arabica coffee", 145000, 250, { "local" }, { BAG, GRIND } },
        { "arabica-son-la", "Cà phê Arabica Sơn La", "Son La Arabica coffee", 139000, 250, { "organic", "local" }, { BAG, GRIND } },
        { "culi-gia-lai", "Cà phê Culi Gia Lai", "Gia Lai peaberry coffee", 99000, 250, { "local" }, { BAG, GRIND } },
        { "espresso-blend", "Cà phê pha máy", "Espresso blend coffee", 125000, 250, { "bestseller" }, { BAG, GRIND } },
        { "phin-blend", "Cà phê phin truyền thống", "Traditional phin blend coffee", 79000, 250, { "bestseller" }, { BAG } },
        { "honey-process", "Cà phê mật ong", "Honey process coffee", 189000, 250, { "new" }, { BAG, GRIND } },
        { "decaf", "Cà phê khử caffein", "Decaf coffee", 165000, 250, {}, { BAG, GRIND } },
        { "drip-bag", "Cà phê túi lọc", "Drip bag coffee", 115000, 140, { "gift" } },
        { "instant-3in1", "Cà phê hòa tan 3 trong 1", "Instant 3-in-1 coffee", 62000, 320, {} },
        { "phin-filter", "Phin pha cà phê", "Phin coffee filter", 55000, 150, { "gift" },
            { { "Size", { "Small", 0 }, { "Large", 15000 } } } },
        { "condensed-milk", "Sữa đặc", "Condensed milk", 32000, 400, {} },
    },
    books = {
        { "truyen-kieu", "Truyện Kiều", "The Tale of Kieu", 85000, 350, { "gift" }, { COVER } },
        { "so-do", "Số đỏ", "Dumb Luck", 79000, 300, { "bestseller" }, { COVER } },
        { "de-men", "Dế Mèn phiêu lưu ký", "Diary of a Cricket", 65000, 250, { "bestseller", "gift" }, { COVER } },
        { "chi-pheo", "Chí Phèo và truyện ngắn", "Chi Pheo and other stories", 72000, 280, {}, { COVER } },
        { "tat-den", "Tắt đèn", "When the Light Is Out", 68000, 260, {}, { COVER } },
        { "viet-nam-su-luoc", "Việt Nam sử lược", "A Brief History of Vietnam", 175000, 700, { "gift" }, { COVER } },
        { "am-thuc-viet", "Ẩm thực Việt Nam", "The Food of Vietnam", 320000, 1200, { "gift", "new" } },
        { "hoc-lap-trinh-c", "Học lập trình C", "Learning C", 189000, 600, {}, { COVER } },
        { "lap-trinh-lua", "Lập trình Lua", "Programming in Lua", 210000, 550, { "new" }, { COVER } },
        { "co-so-du-lieu", "Cơ sở dữ liệu", "Databases", 240000, 800, {}, { COVER } },
        { "english-for-work", "Tiếng Anh công sở", "English for Work", 129000, 400, { "bestseller" } },
        { "tieng-viet-nguoi-nuoc-ngoai", "Tiếng Việt cho người nước ngoài", "Vietnamese for Foreigners", 159000, 480, { "bestseller" } },
        { "tho-ho-xuan-huong", "Thơ Hồ Xuân Hương", "Poems of Ho Xuan Huong", 58000, 180, {}, { COVER } },
        { "co-tich-viet-nam", "Truyện cổ tích Việt Nam", "Vietnamese Fairy Tales", 95000, 420, { "gift" }, { COVER } },
        { "tra-dao", "Trà đạo", "The Way of Tea", 118000, 330, { "new" } },
        { "ban-do-viet-nam", "Bản đồ Việt Nam", "Map of Vietnam", 45000, 120, {} },
    },
    ceramics = {
        { "mug", "Cốc gốm", "Mug", 50000, 350, { "bestseller" } },
        { "tea-set-bat-trang", "Bộ ấm chén Bát Tràng", "Bat Trang tea set", 680000, 1800, { "handmade", "gift" }, { GLAZE } },
        { "rice-bowl", "Bát ăn cơm", "Rice bowl", 45000, 220, { "handmade" }, { GLAZE } },
        { "pho-bowl", "Tô phở", "Pho bowl", 95000, 520, { "handmade", "bestseller" }, { GLAZE } },
        { "dinner-plate", "Đĩa lớn", "Dinner plate", 120000, 640, { "handmade" }, { GLAZE } },
        { "vase-small", "Bình hoa nhỏ", "Small vase", 185000, 700, { "handmade", "gift" }, { GLAZE } },
        { "vase-large", "Bình hoa lớn", "Large vase", 540000, 2600, { "handmade" }, { GLAZE } },
        { "teapot-clay", "Ấm tử sa", "Clay teapot", 890000, 480, { "handmade", "gift", "flagship" } },
        { "sauce-dish", "Chén nước chấm", "Sauce dish", 28000, 90, { "handmade" }, { GLAZE } },
        { "incense-burner", "Lư hương", "Incense burner", 360000, 1100, { "handmade" } },
        { "espresso-cup", "Tách espresso", "Espresso cup", 65000, 160, { "handmade" }, { GLAZE } },
        { "serving-platter", "Đĩa bày tiệc", "Serving platter", 290000, 1300, { "handmade" }, { GLAZE } },
    },
    crafts = {
        { "lacquer-box", "Hộp sơn mài", "Lacquer box", 350000, 450, { "handmade", "gift" }, { { "Color", { "Red", 0 }, { "Black", 0 } } } },
        { "lacquer-tray", "Khay sơn mài", "Lacquer tray", 420000, 900, { "handmade" } },
        { "bamboo-basket", "Giỏ tre", "Bamboo basket", 150000, 400, { "handmade", "organic" },
            { { "Size", { "Small", 0 }, { "Large", 70000 } } } },
        { "silk-lantern", "Đèn lồng Hội An", "Hoi An silk lantern", 180000, 300, { "handmade", "local" },
            { { "Color", { "Red", 0 }, { "Gold", 0 }, { "Blue", 0 } } } },
        { "dong-ho-print", "Tranh Đông Hồ", "Dong Ho print", 120000, 80, { "handmade", "local" } },
        { "rattan-coaster", "Lót ly mây", "Rattan coaster", 25000, 40, { "handmade" }, { SET } },
        { "wooden-puzzle", "Xếp hình gỗ", "Wooden puzzle", 135000, 500, { "gift" } },
        { "conical-hat", "Nón lá", "Conical hat", 90000, 250, { "handmade", "local", "bestseller" } },
    },
    fashion = {
        { "ao-dai-silk", "Áo dài lụa", "Silk ao dai", 1450000, 600, { "handmade", "flagship" }, { SIZE } },
        { "ao-ba-ba", "Áo bà ba", "Ao ba ba", 390000, 350, { "local" }, { SIZE } },
        { "tshirt-saigon", "Áo thun Sài Gòn", "Saigon T-shirt", 220000, 200, { "bestseller" }, { SIZE } },
        { "tshirt-hanoi", "Áo thun Hà Nội", "Hanoi T-shirt", 220000, 200, { "bestseller" }, { SIZE } },
        { "linen-shirt", "Áo sơ mi lanh", "Linen shirt", 480000, 260, { "organic" }, { SIZE } },
        { "silk-scarf", "Khăn lụa Vạn Phúc", "Van Phuc silk scarf", 350000, 90, { "handmade", "gift" } },
        { "canvas-tote", "Túi vải", "Canvas tote bag", 150000, 220, {}, { { "Color", { "Natural", 0 }, { "Black", 0 } } } },
        { "leather-wallet", "Ví da", "Leather wallet", 420000, 120, { "gift" }, { { "Color", { "Brown", 0 }, { "Black", 0 } } } },
        { "sandals", "Dép quai", "Sandals", 260000, 450, {}, { { "Size", { "38", 0 }, { "40", 0 }, { "42", 0 } } } },
        { "raincoat", "Áo mưa", "Raincoat", 120000, 380, { "bestseller" } },
        { "wool-sweater", "Áo len", "Wool sweater", 560000, 480, { "new" }, { SIZE } },
        { "baby-romper", "Bộ liền thân trẻ em", "Baby romper", 180000, 150, { "organic", "gift" },
            { { "Age", { "6m", 0 }, { "12m", 0 }, { "18m", 10000 } } } },
    },
    food = {
        { "fish-sauce-phu-quoc", "Nước mắm Phú Quốc", "Phu Quoc fish sauce", 98000, 750, { "local", "bestseller" },
            { { "Volume", { "500ml", 0 }, { "1l", 75000 } } } },
        { "black-pepper", "Tiêu đen", "Black pepper", 85000, 200, { "local", "organic" } },
        { "cashew", "Hạt điều rang muối", "Salted cashews", 165000, 400, { "bestseller", "gift" } },
        { "dried-mango", "Xoài sấy dẻo", "Dried mango", 78000, 250, { "local" } },
        { "rice-st25", "Gạo ST25", "ST25 rice", 195000, 5000, { "local", "bestseller" } },
        { "cinnamon", "Quế thanh", "Cinnamon sticks", 55000, 150, { "organic" } },
        { "honey-u-minh", "Mật ong U Minh", "U Minh honey", 240000, 700, { "organic", "local" } },
        { "coconut-candy", "Kẹo dừa Bến Tre", "Ben Tre coconut candy", 42000, 300, { "local", "gift" } },
        { "dark-chocolate", "Sô-cô-la đen", "Dark chocolate", 89000, 100, { "gift", "new" },
            { { "Cocoa", { "70%", 0 }, { "85%", 10000 } } } },
        { "rice-noodles", "Bún khô", "Dried rice noodles", 35000, 400, {} },
    },
}

M.tax_class = { books = "books" }

return M
