"""placeholder"""


def draw(data, stem):
    return []
