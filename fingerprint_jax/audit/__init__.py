"""The audit: did a generator keep its training images? A verdict, a page, and how small a leak would have been seen.

panel.py      the fixed panel of label-free scores of the real images
content.py    what the real images alone tell: the content-only panel
stand_ins.py  controls that see what the attacks see
copies.py     copies among the synthetic images
imprint.py    the detection limit, by spike-in
verdict.py    the verdict of the parts, by rules
sides.py      the images that it is about, and what is left out of them
patients.py   one score a patient, and how patients are counted
stages.py     the plan, and the parts one after the other, kept on disk
sentences.py  what the parts say in words
page.py       the page
"""
