"""DICOM and NIfTI files that tests write: small series of patients whose names must not be found anywhere."""

import nibabel
import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SECRETS = {  # of a patient, by the keyword of DICOM; {} is what tells one patient from another
    "PatientName": "Zwetschgen{}^Quirin",
    "PatientID": "MRN-77{}31",
    "PatientBirthDate": "{year}0111",
    "PatientAddress": "Holunderweg {}9 Hinterdorf",
    "InstitutionName": "Klinik Sankt Xaver {}",
    "InstitutionAddress": "Birkenallee {}4",
    "ReferringPhysicianName": "Doktorova{}^Ludmila",
    "OperatorsName": "Knipser{}^Otto",
    "StudyDate": "{year}0223",
    "StudyDescription": "Rundherd{} Oberlappen",
    "SeriesDescription": "Weichteil{}Kernel",
    "AccessionNumber": "ACC{}55512",
    "DeviceSerialNumber": "SN{}98127",
}


def secrets(patient):
    return {name: text.format(patient, year=1900 + patient) for name, text in SECRETS.items()}


def dataset(stored, patient=1, *, number=1, depth=None, series=None, **tags):
    """A CT image of stored values, int16 or uint16 [H,W] or [F,H,W], with the SECRETS of a patient."""
    found = pydicom.Dataset()
    found.file_meta = pydicom.dataset.FileMetaDataset()
    found.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found.file_meta.MediaStorageSOPClassUID = found.SOPClassUID = CTImageStorage
    found.file_meta.MediaStorageSOPInstanceUID = found.SOPInstanceUID = generate_uid()
    found.StudyInstanceUID = generate_uid(entropy_srcs=[f"study {patient}"])
    found.SeriesInstanceUID = series or generate_uid(entropy_srcs=[f"series {patient}"])
    found.Modality, found.InstanceNumber = "CT", number
    for name, text in secrets(patient).items():
        setattr(found, name, text)
    found.add_new(0x00091010, "LO", f"privat{patient} Zwetschgen")
    found.OtherPatientIDsSequence = [pydicom.Dataset()]
    found.OtherPatientIDsSequence[0].PatientID = secrets(patient)["PatientID"]
    if depth is not None:
        found.ImagePositionPatient, found.ImageOrientationPatient = [0, 0, depth], [1, 0, 0, 0, 1, 0]
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.Rows, found.Columns = stored.shape[-2:]
    if stored.ndim == 3:
        found.NumberOfFrames = len(stored)
    bits = 8 * stored.dtype.itemsize
    found.BitsAllocated, found.BitsStored, found.HighBit = bits, bits, bits - 1
    found.PixelRepresentation = int(stored.dtype.kind == "i")
    found.RescaleSlope, found.RescaleIntercept = 1, -1024
    found.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(found, name)
        else:
            setattr(found, name, value)
    return found


def save(path, found):
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save_as(path, enforce_file_format=True)
    return path


def nifti(voxels, affine=None, **fields):
    """The bytes of a NIfTI of voxels [X,Y,Z], with fields of its header as they are given."""
    header = nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine).header
    header["magic"], header["vox_offset"], header["scl_slope"], header["scl_inter"] = b"n+1", 352, 1, 0
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + voxels.tobytes(order="F")
