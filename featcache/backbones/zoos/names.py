def full_name(name): return name
def short_names(): return ()
